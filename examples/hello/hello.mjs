// Print each push of a user, and say hello: `node hello.mjs TOKEN [ADDRESS]` (Node 22 or newer, no packages).
const [token, address = "ws://127.0.0.1:8181/ws"] = process.argv.slice(2);
const bridge = new WebSocket(address, ["bridge.v1.json", `bridge.token.${token}`]);

bridge.onmessage = ({ data }) => {
  const frame = JSON.parse(data);
  if (frame.type === "welcome") {
    console.log("welcome", frame.user);
    bridge.send(JSON.stringify({ type: "publish", event: "hello", data: "from Node", ref: 1 }));
  } else if (frame.type === "push") {
    console.log("push", frame.event, frame.data);
  } else if (frame.type === "ok" || frame.type === "error") {
    console.log(frame.type, frame.code ?? "");
  }
};
bridge.onclose = ({ code, reason }) => console.log("closed", code, reason);

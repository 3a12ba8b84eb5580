bridge = new WebSocket("ws://127.0.0.1:8181/ws", ["bridge.v1.json", "bridge.token.TOKEN"]);
bridge.onmessage = ({ data }) => console.log(data);

// Once it is welcomed:
bridge.send(JSON.stringify({ type: "publish", event: "hello", data: "from a console", ref: 1 }));

"""The browser's library as a package of npm: what is in it, and that its types say what it does."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

import bridge
from tests.support.npm import bundle, npm, tsc

ROOT = Path(__file__).parent.parent.parent
WEB = ROOT / "bridge" / "web"
JS = (WEB / "bridge-client.js").read_text()
ADRS = ROOT / "docs" / "adr"
TYPES = (WEB / "bridge-client.d.ts").read_text()
CLIENTS = (ROOT / "docs" / "clients.md").read_text()

RIGHT = """
import { connect, type Connection, type Push, type PublishError, type State, type TopicError } from "bridge-client";

const bridge: Connection = connect({
  url: "wss://push.example.com/ws",
  token: async () => "a.b.c",
  autoAck: true,
  onPush: async (push) => { await show(push.event, push.data.order); await push.ack(); },
  onWithdraw: ({ id, tenant }) => console.log(id, tenant),
  onGap: async () => {},
  onState: (state: State) => {
    if (state.phase === "open") console.log(state.user.length, state.session.length);
    if (state.phase === "waiting") console.log(state.seconds.toFixed(), state.code, state.error?.message);
  },
  onError: (error) => console.log(error.message),
  timing: { max: 5 },
});
declare function show(event: string, order: number): Promise<void>;
connect<{ order: number }>({ url: new URL("ws://h/ws"), token: "a.b.c", tokenBy: "frame", onPush: typed, sse: false });
connect({ url: "/ws", tokenBy: "cookie", onPush() {}, storage: localStorage, WebSocket, fetch, tabs: "shared" });
function typed({ id, data, topic, encoding }: Push<{ order: number }>) { return [id, data.order + 1, topic, encoding]; }

async function talk() {
  const { user }: { user: string } = await bridge.ready();
  const noted: boolean = await bridge.ack("p1");
  if (!noted) console.log(user);
  bridge.ack("p1", "shop");
  try {
    await bridge.publish("chat.said", { text: "hello" }, { topic: "room.7", ref: 4711 });
    await bridge.subscribe("room.7");
    await bridge.unsubscribe("room.7");
  } catch (error) {
    const { code, ref } = error as PublishError;
    if (code === "busy") await bridge.publish("chat.said", null, { ref });
    if ((error as TopicError).code === "try_later") console.log((error as TopicError).topic);
  }
  const off: () => void = bridge.on("order.created", async ({ data }: Push<{ order: number }>) => data.order);
  bridge.off("order.created", off);
  const n: number = bridge.duplicates;
  if (bridge.state.phase === "closed") console.log(bridge.state.reason, n);
  bridge.close();
}
talk();
"""

WRONG = """
import { connect, type State } from "bridge-client";
// @ts-expect-error: onPush is needed
connect({ url: "/ws", token: "a.b.c" });
// @ts-expect-error: a token is needed
connect({ url: "/ws", onPush() {} });
// @ts-expect-error: the cookie is the token
connect({ url: "/ws", token: "a.b.c", tokenBy: "cookie", onPush() {} });
// @ts-expect-error: there is no such way
connect({ url: "/ws", token: "a.b.c", tokenBy: "query", onPush() {} });
// @ts-expect-error: there is no such option
connect({ url: "/ws", token: "a.b.c", onPush() {}, autoack: true });
// @ts-expect-error: there is no other way to share
connect({ url: "/ws", token: "a.b.c", onPush() {}, tabs: true });
// @ts-expect-error: a number is no token
connect({ url: "/ws", token: () => 7, onPush() {} });
const bridge = connect({ url: "/ws", token: "a.b.c", onPush() {} });
// @ts-expect-error: it is for reading
bridge.duplicates = 0;
// @ts-expect-error: a listener is a function
bridge.on("order.created", "show");
// @ts-expect-error: an event is needed
bridge.publish();
// @ts-expect-error: there is no such phase
const phase: State["phase"] = "opened";
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has installed what `npm pack` makes."""
    made = tmp_path_factory.mktemp("project")
    npm(WEB, "pack", "--silent", "--pack-destination", str(made))
    (packed,) = made.glob("*.tgz")
    with tarfile.open(packed) as archive:
        archive.extractall(made, filter="data")
    (made / "node_modules").mkdir()
    (made / "package").rename(made / "node_modules" / "bridge-client")
    (made / "package.json").write_text(json.dumps({"type": "module"}))
    return made


def check(project: Path, text: str, libraries: str) -> str:
    """What the compiler says of a program; nothing where it is right."""
    (project / "program.ts").write_text(text)
    options = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--types", ""]
    done = subprocess.run(
        [tsc(), *options, "--lib", libraries, "program.ts"],
        cwd=project, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.stdout + done.stderr


def sizes(directory: Path) -> dict[str, int]:
    """Bytes of each file, minified and compressed, by what its name adds to that of the first."""
    made = {}
    for file in sorted(WEB.glob("bridge-client*.js")):
        text = bundle(directory, str(file), "--minify", "--format=esm", "--external:./*")
        made[file.stem.removeprefix("bridge-client")] = len(gzip.compress(text.encode(), 9))
    return made


def test_what_every_page_loads_is_below_six_kilobytes_and_the_manual_says_the_sizes(tmp_path: Path) -> None:
    found = sizes(tmp_path)
    print(found)
    assert found[""] < 6_000
    assert not re.search(r"^(import|export .* from)\b", JS, re.MULTILINE), "it loads nothing by itself"
    loaded = set(re.findall(r'import\("\./bridge-client([^"]+)\.js"\)', JS))
    assert loaded == found.keys() - {""}
    table = CLIENTS.partition("| file |")[2].partition("\n\n")[0]
    stated = dict(re.findall(r"\[bridge-client(\S*)\.js\].*\| (\d\.\d) KB \|", table))
    assert stated == {part: f"{size / 1000:.1f}" for part, size in found.items()}
    assert f"has {stated['']} KB and no dependencies" in (ROOT / "README.md").read_text()
    (adr,) = ADRS.glob("0042-*.md")
    assert f"{stated['-tabs']} KB" in adr.read_text()


def test_the_package_has_the_library_its_types_and_no_file_of_the_demo_page(project: Path) -> None:
    package = project / "node_modules" / "bridge-client"
    assert sorted(path.name for path in package.iterdir()) == [
        "LICENSE", "README.md", "bridge-client-stream.js", "bridge-client-tabs.js", "bridge-client-words.js",
        "bridge-client.d.ts", "bridge-client.js", "package.json",
    ]  # fmt: skip
    about = json.loads((package / "package.json").read_text())
    assert about["version"] == bridge.__version__
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (package / "bridge-client.js").read_text() == JS
    for name in (about["main"], about["types"], *about["exports"]["."].values()):
        assert (package / name).is_file()


def test_a_program_that_uses_it_as_the_manual_says_is_right(project: Path) -> None:
    assert check(project, RIGHT, "es2022,dom") == ""


def test_programs_with_mistakes_are_refused(project: Path) -> None:
    assert check(project, WRONG, "es2022,dom") == ""
    assert "Unused '@ts-expect-error'" in check(
        project, WRONG.replace('"a.b.c" });', '"a.b.c", onPush() {} });'), "es2022,dom"
    )


def test_the_types_need_no_types_of_browsers(project: Path) -> None:
    plain = """
        import { connect } from "bridge-client";
        connect({ url: "wss://h/ws", token: () => null, onPush: (push) => push.ack() }).close();
    """
    assert check(project, plain, "es2022") == ""


# --- the types and the JavaScript ------------------------------------------------------------------------


def members(interface: str) -> set[str]:
    """The names in one interface, or in one type, of the declarations."""
    body = re.search(rf"^export (?:interface|type) {interface}\b[^{{]*{{\n(.*?)^}}", TYPES, re.M | re.S)
    assert body is not None, interface
    return set(re.findall(r"^  (?:readonly )?(\w+)\??[:(]", body[1], re.MULTILINE))


def test_the_same_names_are_exported() -> None:
    exported = re.findall(r"^export (?:function|class|const) (\w+)", JS, re.MULTILINE)
    assert exported == re.findall(r"^export (?:declare )?function (\w+)", TYPES, re.MULTILINE) == ["connect"]


def test_the_options_are_those_that_the_library_reads() -> None:
    read: set[str] = set()
    for names in re.findall(r"const \{([^}]+)\} = (?:this\.#options(?: = options)?|options)\b", JS):
        read |= set(re.findall(r"(\w+)(?: = [\w.]+)?(?:,|$)", names.strip()))
    read |= set(re.findall(r"\boptions\??\.(\w+)", JS)) | set(re.findall(r"#options\??\.(\w+)", JS))
    declared = {*members("Options"), *members("Callbacks"), *members("Surroundings"), "token", "tokenBy"}
    assert declared == read


def test_the_timing_is_that_of_the_library() -> None:
    timing = re.search(r"const TIMING = {(.*?)}", JS)
    assert timing is not None
    assert members("Timing") == set(re.findall(r"(\w+):", timing[1]))


def test_the_members_of_a_connection_are_those_that_are_not_private() -> None:
    body = re.search(r"^class Connection {\n(.*?)^}", JS, re.M | re.S)
    assert body is not None
    public = set(re.findall(r"^  (?:get |async )?(\w+)(?:\(| =)", body[1], re.MULTILINE)) - {"constructor"}
    assert members("Connection") == public


def test_the_phases_are_those_of_the_library() -> None:
    phases = set(re.findall(r'phase: "(\w+)"', TYPES))
    assert phases == set(re.findall(r'phase: "(\w+)"', JS))


@pytest.mark.parametrize(("error", "heading"), [("PublishError", "Publishing"), ("TopicError", "Topics")])
def test_the_codes_of_errors_are_those_of_the_manual(error: str, heading: str) -> None:
    section = CLIENTS.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = section.partition("| `code` |")[2].partition("\n\n")[0]
    body = re.search(rf"interface {error} .*?code:\n(.*?);", TYPES, re.S)
    assert body is not None
    declared = set(re.findall(r'"(\w+)"', body[1]))
    assert declared - {"one_way"} == set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) - {"one_way"}

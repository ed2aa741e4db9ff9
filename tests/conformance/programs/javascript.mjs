// The JavaScript client: sandboxes, functions of a Python app, queues, volumes. One line of JSON.
import { readFileSync, writeFileSync } from "node:fs";
import https from "node:https";

import { ModalClient, Probe } from "modal";

const modal = new ModalClient();
const found = {};

async function check(name, call) {
  try {
    found[name] = await call();
  } catch (error) {
    found[name] = `${error.constructor.name}: ${error.message}`;
  }
}

const app = await modal.apps.fromName("conformance-javascript", { createIfMissing: true });
const image = modal.images.fromRegistry("python:3.11-slim");
const sandbox = await modal.sandboxes.create(app, image, { command: ["sh", "-c", "cat; sleep 300"] });

await check("streams", async () => {
  await sandbox.stdin.writeText("over and back\n");
  const reader = sandbox.stdout.getReader();
  return (await reader.read()).value;
});
await check("exec", async () => {
  const process = await sandbox.exec(["python", "-c", "print(6 * 7); raise SystemExit(3)"]);
  return [await process.stdout.readText(), await process.wait()];
});
await check("files", async () => {
  await sandbox.filesystem.writeText("some text", "/tmp/a/b.txt");
  return await sandbox.filesystem.readText("/tmp/a/b.txt");
});
await check("bytes", async () => {
  const data = new Uint8Array([0, 255, 10, 13, 200]);
  await sandbox.filesystem.writeBytes(data, "/tmp/bytes");
  const process = await sandbox.exec(["cat", "/tmp/bytes"], { mode: "binary" });
  const printed = await process.stdout.readBytes();
  return [[...(await sandbox.filesystem.readBytes("/tmp/bytes"))], [...printed]];
});
await check("more_files", async () => {
  const files = sandbox.filesystem;
  await files.makeDirectory("/tmp/d/e");
  writeFileSync("local.txt", "from here");
  await files.copyFromLocal("local.txt", "/tmp/d/f");
  await files.copyToLocal("/tmp/d/f", "back.txt");
  const listed = (await files.listFiles("/tmp/d")).map((file) => [file.name, file.type]).sort();
  const { size, permissions } = await files.stat("/tmp/d/f");
  await files.remove("/tmp/d", { recursive: true });
  let gone = "there";
  try {
    await files.stat("/tmp/d");
  } catch (error) {
    gone = error.constructor.name;
  }
  return [listed, size, permissions, readFileSync("back.txt", "utf8"), gone];
});
await check("exec_options", async () => {
  const secret = await modal.secrets.fromObject({ HIDDEN: "secret" });
  const process = await sandbox.exec(["sh", "-c", "echo $GREETING $HIDDEN $PWD; echo err >&2"], {
    env: { GREETING: "hallo" },
    secrets: [secret],
    workdir: "/usr",
  });
  const out = await process.stdout.readText();
  const terminal = await sandbox.exec(["sh", "-c", "tty > /dev/null && echo terminal"], { pty: true });
  return [out, await process.stderr.readText(), (await terminal.stdout.readText()).trim()];
});
await check("stdin", async () => {
  const process = await sandbox.exec(["sort"]);
  await process.stdin.writeText("b\na\n");
  await process.closeStdin();
  return [await process.stdout.readText(), await process.wait()];
});
await check("exec_timeout", async () => {
  const process = await sandbox.exec(["sleep", "100"], { timeoutMs: 1000 });
  return await process.wait();
});
await check("no_program", () => sandbox.exec(["/no/such/program"]));
await check("snapshot", async () => {
  const kept = await sandbox.snapshotFilesystem();
  const other = await modal.sandboxes.create(app, kept, { command: ["cat", "/tmp/a/b.txt"] });
  const text = await other.stdout.readText();
  return [text, await other.wait()];
});
await check("names_and_tags", async () => {
  const name = `javascript-${Date.now()}`;
  const named = await modal.sandboxes.create(app, image, {
    name,
    tags: { first: name },
    command: ["sleep", "300"],
  });
  const found = await modal.sandboxes.fromName("conformance-javascript", name);
  const before = await found.getTags();
  await named.setTags({ second: name });
  const listed = [];
  for await (const one of modal.sandboxes.list({ appId: app.appId, tags: { second: name } })) {
    listed.push(one.sandboxId === named.sandboxId);
  }
  const running = await (await modal.sandboxes.fromId(named.sandboxId)).poll();
  let taken = "free";
  try {
    await modal.sandboxes.create(app, image, { name, command: ["true"] });
  } catch (error) {
    taken = error.constructor.name;
  }
  const code = await named.terminate({ wait: true });
  return [before.first === name, listed, running, taken, code];
});
await check("ready", async () => {
  const ready = await modal.sandboxes.create(app, image, {
    command: ["python", "-m", "http.server", "8000"],
    readinessProbe: Probe.withTcp(8000),
  });
  await ready.waitUntilReady(60000);
  await ready.terminate();
  return "ready";
});
await check("networks", async () => {
  const address = "198.51.100.1";
  const probe =
    "import socket, errno\ns = socket.socket(); s.settimeout(2)\n" +
    `try: s.connect(("${address}", 9))\n` +
    "except OSError as e: print('refused' if e.errno == errno.EHOSTUNREACH else 'other')";
  const limited = await modal.sandboxes.create(app, image, {
    command: ["sleep", "300"],
    outboundDomainAllowlist: ["*.example.com"],
  });
  const seen = async () =>
    (await (await limited.exec(["python", "-c", probe])).stdout.readText()).trim() === "refused";
  const found = [await seen()];
  const networks = { outboundCidrAllowlist: [`${address}/32`], outboundDomainAllowlist: [] };
  await limited.updateNetworkPolicy(networks);
  found.push(await seen());
  await limited.terminate();
  return found;
});
await check("connect_token", async () => {
  const server = await modal.sandboxes.create(app, image, {
    command: ["python", "-m", "http.server", "8080"],
  });
  const { url, token } = await server.createConnectToken({ userMetadata: "somebody" });
  const ca = readFileSync(process.argv[2]);
  const status = (headers) =>
    new Promise((resolve, reject) => {
      https.get(`${url}/etc/hostname`, { ca, headers }, (answer) => {
        answer.resume();
        resolve(answer.statusCode);
      }).on("error", reject);
    });
  const found = [await status({ Authorization: `Bearer ${token}` }), await status({})];
  await server.terminate();
  return found;
});
await check("terminate", async () => {
  await sandbox.terminate();
  return await sandbox.wait();
});
await check("tunnel", async () => {
  const server = await modal.sandboxes.create(app, image, {
    command: ["python", "-m", "http.server", "8000"],
    unencryptedPorts: [8000],
  });
  const tunnels = await server.tunnels();
  const [host, port] = tunnels[8000].tcpSocket;
  const answer = await fetch(`http://${host}:${port}/etc/hostname`);
  await server.terminate();
  return answer.status;
});
const squared = await modal.functions.fromName("conformance-javascript-functions", "square");
await check("remote", () => squared.remote([7]));
await check("spawn", async () => await (await squared.spawn([9])).get());
await check("remote_error", () => squared.remote(["x"]));
await check("unknown_function", () => modal.functions.fromName("conformance-no-such-app", "f"));
await check("queue", async () => {
  const queue = await modal.queues.ephemeral();
  await queue.putMany([1, "two", [3]]);
  const items = [await queue.get(), ...(await queue.getMany(2))];
  queue.closeEphemeral();
  return items;
});
await check("volume", async () => {
  const volume = await modal.volumes.fromName("conformance-javascript", { createIfMissing: true });
  const writer = await modal.sandboxes.create(app, image, {
    command: ["sh", "-c", "cat /data/x 2>/dev/null; echo kept > /data/x"],
    volumes: { "/data": volume },
  });
  return await writer.wait();
});
console.log(JSON.stringify(found));
modal.close();

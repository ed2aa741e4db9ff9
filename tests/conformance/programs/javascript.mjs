// The JavaScript client: sandboxes, functions of a Python app, queues, volumes. One line of JSON.
import { ModalClient } from "modal";

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

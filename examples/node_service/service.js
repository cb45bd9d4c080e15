// A service in JavaScript: it registers a job, and serves JobHandlerService.Execute, which Carillon's worker calls for
// each run. There is no client library in between, only the protos.
"use strict";

const { readFile } = require("node:fs/promises");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");
const { fromStruct, toStruct } = require("./struct");

const TARGET = process.env.CARILLON_TARGET ?? "127.0.0.1:7007";
const TOKEN = process.env.CARILLON_SERVICE_TOKEN ?? "";
const PORT = process.env.NODE_SERVICE_PORT ?? "50052";
const SERVICE = "node-service";
const PROTOS = path.join(__dirname, "..", "..", "protos");

const { carillon } = grpc.loadPackageDefinition(
  protoLoader.loadSync(["registry_service", "job_handler_service"].map((name) => `carillon/v1/${name}.proto`), {
    includeDirs: [PROTOS],
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
  }),
);

// The jobs of this service, by name.
const handlers = { "line-count": countLines };

const manifest = {
  service: SERVICE,
  jobs: [
    {
      job: "line-count",
      description: "Counts the lines of some files; one that cannot be read is a failed item.",
      target: { grpc: { address: `127.0.0.1:${PORT}` } },
      timing: { cron: "@hourly" },
      policies: { attemptTimeout: { seconds: 60 } },
      config: toStruct({ files: [path.join(PROTOS, "carillon/v1/job_handler_service.proto")] }),
    },
  ],
};

async function countLines(payload, signal) {
  if (!Array.isArray(payload.files)) {
    throw Object.assign(new Error("payload.files must be a list"), { code: grpc.status.INVALID_ARGUMENT });
  }
  let lines = 0;
  const itemOutcomes = [];
  for (const file of payload.files) {
    try {
      lines += (await readFile(file, { encoding: "utf8", signal })).split("\n").length - 1;
      itemOutcomes.push({ key: file, succeeded: true });
    } catch (error) {
      if (signal.aborted) throw error;
      itemOutcomes.push({ key: file, succeeded: false, error: error.message });
    }
  }
  return { itemOutcomes, metrics: toStruct({ lines }) };
}

// Implements JobHandlerService.Execute. An error's `code`, if it is a number, is the status that Carillon records.
async function execute(call, answer) {
  const { run, job, attempt } = call.request;
  const handler = handlers[job.split("/")[3]];
  if (!handler) {
    answer({ code: grpc.status.NOT_FOUND, details: `${SERVICE} has no handler for ${job}` });
    return;
  }
  const stopping = new AbortController();
  call.on("cancelled", () => stopping.abort());
  try {
    const result = await handler(fromStruct(call.request.payload), stopping.signal);
    console.log(`${job}: attempt ${attempt} at ${run} did ${result.itemOutcomes.length} items`);
    answer(null, result);
  } catch (error) {
    console.log(`${job}: attempt ${attempt} at ${run} failed: ${error.message}`);
    answer({ code: Number.isInteger(error.code) ? error.code : grpc.status.UNKNOWN, details: error.message });
  }
}

function register() {
  const registry = new carillon.v1.RegistryService(TARGET, grpc.credentials.createInsecure());
  // Waits for a scheduler that is not up yet.
  const metadata = new grpc.Metadata({ waitForReady: true });
  metadata.set("x-service-token", TOKEN);
  return new Promise((resolve, reject) => {
    registry.registerJobs(manifest, metadata, { deadline: Date.now() + 60_000 }, (error, response) => {
      registry.close();
      if (error) reject(error);
      else resolve(response);
    });
  });
}

async function main() {
  const server = new grpc.Server();
  server.addService(carillon.v1.JobHandlerService.service, { execute });
  await new Promise((resolve, reject) => {
    server.bindAsync(`127.0.0.1:${PORT}`, grpc.ServerCredentials.createInsecure(), (error) =>
      error ? reject(error) : resolve(),
    );
  });
  // Lets calls end, then nothing keeps the process.
  for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, () => server.tryShutdown(() => process.exit(0)));
  const { changes } = await register();
  for (const { kind, job } of changes) console.log(`${job.name}: ${kind}`);
}

main().catch((error) => {
  console.error(`node_service: ${error.message}`);
  process.exit(1);
});

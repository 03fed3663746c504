// An unmodified Node client of the mesh: @grpc/grpc-js with @grpc/grpc-js-xds, and no code of ours below it.
//
//   node client.js path/to/orders.proto
//
// Reads one JSON object a line on standard input and answers each with one line:
//
//   {"target": "xds:///orders", "method": "Get", "count": 100, "concurrency": 4, "timeout_s": 5, "metadata": {}}
//   → {"count": 100, "codes": {"OK": 100}, "versions": {"v1": 90, "v2": 10}, "tenants": {"acme": 100}, "errors": []}
//
// What can't be done is answered {"error": "why"}. The end of the input ends it.
'use strict';

const readline = require('node:readline');
const grpc = require('@grpc/grpc-js');
const xds = require('@grpc/grpc-js-xds');
const loader = require('@grpc/proto-loader');

const MAX_ERRORS = 10;
const STATUS = Object.fromEntries(Object.entries(grpc.status).filter(([, number]) => typeof number === 'number')
  .map(([name, number]) => [number, name]));

xds.register();
const definition = loader.loadSync(process.argv[2], { keepCase: true });
const { Orders } = grpc.loadPackageDefinition(definition).meshwarden.examples.v1;
const clients = new Map();

function clientOf(target) {
  if (!clients.has(target)) {
    // No fallback that would speak in the clear: TLS to an unknown root fails.
    const credentials = new xds.XdsChannelCredentials(grpc.credentials.createSsl());
    clients.set(target, new Orders(target, credentials));
  }
  return clients.get(target);
}

function count(table, key) {
  table[key] = (table[key] || 0) + 1;
}

function once(client, said, answer) {
  const metadata = new grpc.Metadata();
  for (const [key, value] of Object.entries(said.metadata || {})) metadata.set(key, String(value));
  const deadline = Date.now() + (said.timeout_s || 5) * 1000;
  return new Promise((resolve) => {
    client.Get({ id: '1' }, metadata, { deadline }, (error, order) => {
      answer.count += 1;
      count(answer.codes, error ? STATUS[error.code] : 'OK');
      if (error) {
        if (answer.errors.length < MAX_ERRORS) answer.errors.push(error.message);
      } else {
        count(answer.versions, order.version);
        count(answer.tenants, order.tenant);
      }
      resolve();
    });
  });
}

async function call(said) {
  if (said.method !== undefined && said.method !== 'Get') throw new Error(`method ${said.method}: give Get`);
  const answer = { count: 0, codes: {}, versions: {}, tenants: {}, errors: [] };
  const client = clientOf(said.target || 'xds:///orders');
  let left = said.count === undefined ? 1 : said.count;
  const work = async () => {
    while (left > 0) {
      left -= 1;
      await once(client, said, answer);
    }
  };
  await Promise.all(Array.from({ length: said.concurrency || 1 }, work));
  return answer;
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    let answer;
    try {
      answer = await call(JSON.parse(line));
    } catch (error) {
      answer = { error: String(error.message || error) };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
  for (const client of clients.values()) client.close();
}

main().then(() => process.exit(0));

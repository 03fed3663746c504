// An unmodified Node server of the mesh: @grpc/grpc-js-xds, and no code of ours. It answers /echo.Echo/Say on
// 127.0.0.1:$MESHWARDEN_PORT until its standard input ends.
'use strict';

const grpc = require('@grpc/grpc-js');
const xds = require('@grpc/grpc-js-xds');

xds.register();
const same = (bytes) => bytes;
const method = { path: '/echo.Echo/Say', requestStream: false, responseStream: false };
const codec = { requestSerialize: same, requestDeserialize: same, responseSerialize: same, responseDeserialize: same };
const server = new xds.XdsServer();
server.addService({ Say: { ...method, ...codec } }, { Say: (call, done) => done(null, Buffer.from('hello')) });
const credentials = new xds.XdsServerCredentials(grpc.ServerCredentials.createInsecure());
server.bindAsync(`127.0.0.1:${process.env.MESHWARDEN_PORT}`, credentials, (error) => {
  if (error) {
    console.error(error.message);
    process.exit(1);
  }
});
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));

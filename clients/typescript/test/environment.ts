// The service and the proxy of a run of the suite. For Node only.

import { startProxy, type Proxy } from "./proxy.js";
import { startService } from "./service.js";
import type { Environment } from "./support.js";

export async function startEnvironment(): Promise<{ env: Environment; proxy: Proxy; stop(): Promise<void> }> {
  const proxy = await startProxy();
  // A page of the proxy calls the service across origins.
  const service = await startService(proxy.url).catch(async (error) => {
    await proxy.stop();
    throw error;
  });
  proxy.target = service.url;
  const env = {
    service: service.url,
    proxy: proxy.url,
    apiKey: service.apiKey,
    userToken: service.userToken,
    appends: Number(process.env.SESSIOND_CLIENT_APPENDS ?? 500),
    writers: 16,
  };
  const stop = async () => {
    await proxy.stop();
    await service.stop();
  };
  return { env, proxy, stop };
}

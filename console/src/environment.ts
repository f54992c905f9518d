/** `--console-label` and the version of the service, from the page. */
export const LABEL = meta("sessiond-label");
export const VERSION = meta("sessiond-version");

/** The colour of the environment: more prominent for production. */
export const ENVIRONMENT = /prod|live/i.test(LABEL)
  ? "production"
  : /stag|accept|uat|pre/i.test(LABEL)
    ? "staging"
    : "other";

function meta(name: string): string {
  return document.querySelector<HTMLMetaElement>(`meta[name="${name}"]`)?.content ?? "";
}

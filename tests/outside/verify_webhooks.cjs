// Verifies webhooks from standard input with the official library: [{secret, headers, body}], the body as base64. Prints a
// JSON list: for each, whether it verified.
const { Webhook, WebhookVerificationError } = require("standardwebhooks");

const verifies = ({ secret, headers, body }) => {
  try {
    new Webhook(secret).verify(Buffer.from(body, "base64").toString(), headers);
    return true;
  } catch (error) {
    if (error instanceof WebhookVerificationError) return false;
    throw error;
  }
};

const cases = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(cases.map(verifies)));

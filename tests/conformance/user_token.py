"""Prints a token of the user of the document's examples, valid for an hour, signed with the secret in a file."""

import base64
import hmac
import json
import pathlib
import sys
import time


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


claims = {
    "iss": "conformance",
    "aud": "sessiond",
    "exp": int(time.time()) + 3600,
    "businessId": "B0100001",
    "sub": "user_123",
}
text = ".".join(encoded(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
secret = pathlib.Path(sys.argv[1]).read_bytes().strip()
print(f"{text}.{encoded(hmac.digest(secret, text.encode(), 'sha256'))}")

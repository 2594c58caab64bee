"""An OpenID Connect provider for tests of signing in: real tokens, and it believes everybody to be the same person."""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

CLIENT, SECRET = "fastrm", "0123456789abcdef0123456789abcdef"


class Provider:
    """Speaks discovery, authorization codes, tokens and keys; `claims` is who everybody is."""

    def __init__(self, **claims: str) -> None:
        from joserfc.jwk import RSAKey

        self.claims = claims
        self._key = RSAKey.generate_key(2048, parameters={"kid": "test", "use": "sig", "alg": "RS256"})
        self._nonces: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._get(self)

            def do_POST(self) -> None:
                outer._post(self)

            def log_message(self, *words: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[Provider]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def secrets_file(self, path: Path, address: str) -> Path:
        """The file that tells a dashboard at `address` of this provider."""
        path.write_text(
            f"""[auth]
redirect_uri = "{address}/oauth2callback"
cookie_secret = "{secrets.token_hex(32)}"
client_id = "{CLIENT}"
client_secret = "{SECRET}"
server_metadata_url = "{self.url}/.well-known/openid-configuration"
"""
        )
        return path

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        address = urlsplit(request.path)
        asked = {name: values[0] for name, values in parse_qs(address.query).items()}
        if address.path == "/.well-known/openid-configuration":
            found = {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
                "id_token_signing_alg_values_supported": ["RS256"],
                "token_endpoint_auth_methods_supported": ["client_secret_basic"],
            }
            _answer(request, found)
        elif address.path == "/keys":
            _answer(request, {"keys": [self._key.as_dict(private=False)]})
        elif address.path == "/authorize":
            code = secrets.token_hex(8)
            self._nonces[code] = asked["nonce"]
            request.send_response(302)
            back = urlencode({"code": code, "state": asked["state"]})
            request.send_header("Location", f"{asked['redirect_uri']}?{back}")
            request.end_headers()
        else:
            request.send_error(404)

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        from joserfc import jwt

        sent = parse_qs(request.rfile.read(int(request.headers["Content-Length"])).decode())
        known = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if request.path != "/token" or request.headers["Authorization"] != f"Basic {known}":
            request.send_error(401)
            return
        now = int(time.time())
        said = {
            "iss": self.url,
            "aud": CLIENT,
            "sub": "1",
            "iat": now,
            "exp": now + 600,
            "nonce": self._nonces.pop(sent["code"][0]),
        }
        token = jwt.encode({"alg": "RS256", "kid": "test"}, {**said, **self.claims}, self._key)
        _answer(request, {"access_token": "a", "token_type": "Bearer", "expires_in": 600, "id_token": token})


def _answer(request: BaseHTTPRequestHandler, found: dict[str, Any]) -> None:
    body = json.dumps(found).encode()
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)

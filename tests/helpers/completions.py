"""A stand-in for an OpenAI-compatible server, which says what a test lets it say."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Completions(ThreadingHTTPServer):
    """POST /v1/chat/completions: `replies` maps a part of the prompt to what is answered, a list to one thing after another:
    a text, (status, headers, body), or f(prompt) that returns one. `asked`: the bodies and headers that came."""

    daemon_threads = True

    def __init__(self, replies: dict) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.asked = replies, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Completions

    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        prompt = body["messages"][-1]["content"]
        reply = next(value for key, value in self.server.replies.items() if key in prompt)
        if isinstance(reply, list):
            reply = reply.pop(0) if len(reply) > 1 else reply[0]
        if callable(reply):
            reply = reply(prompt)
        status, headers, content = reply if isinstance(reply, tuple) else (200, {}, None)
        if content is None:
            choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
            content = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 3}})
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content.encode())}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content.encode())


@contextlib.contextmanager
def serving(replies: dict):
    with Completions(replies) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()

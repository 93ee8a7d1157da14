"""A stand-in for vLLM's server program: takes its options, speaks its API, starts a worker of its own."""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))


class Api(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self._send({})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = f"{body['model']} heard {body['messages'][-1]['content']}"
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        self._send(
            {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
            | {"choices": [choice], "usage": usage}
        )

    def _send(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
sys.stdout.write(f"worker {worker.pid}\n")
sys.stdout.flush()
ThreadingHTTPServer((options["--host"], int(options["--port"])), Api).serve_forever()

"""A stand-in for vLLM's server program: takes its options, speaks its API, starts a worker of its own.

Words in a prompt make it do what vLLM does at times: LONG (refuses it), DIE (logs the prompt as an error, and
is killed before it answers), SICK (its engine is dead: it answers 500 and says that it is not well), ABORT
(ends an answer early), and of a stream CUT and FAULT. Its log grows by a line a request, as vLLM's does. An
answer takes FAKE_VLLM_SECONDS.
"""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

given = [each for each in sys.argv[1:] if each != "--enable-lora"]
options = dict(zip(given[::2], given[1::2], strict=False))
served = [options["--served-model-name"]]
if "--lora-modules" in options:
    assert "--enable-lora" in sys.argv, "vLLM wants both"
    served.append(json.loads(options["--lora-modules"])["name"])
key = os.environ.get("VLLM_API_KEY", "")
state = {"is_well": True}
LONG = "This model's maximum context length is 8 tokens. However, you requested 9 tokens."
N_CONTEXT = 8192
WIDE = "max_tokens={} cannot be greater than max_model_len={}. Please request fewer output tokens."


def log(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Api(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path == "/health":
            self._send({}, 200 if state["is_well"] else 503)
        elif self.path == "/version":
            self._send({"version": "0.1"})
        elif self._is_refused():
            self._send({"error": "Unauthorized"}, 401)
        elif self.path == "/v1/models":
            self._send({"data": [{"id": name} for name in served]})
        else:
            self._send({}, 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["prompt"]
        time.sleep(float(os.environ.get("FAKE_VLLM_SECONDS", "0")))
        log(f"POST {self.path}")
        if self._is_refused():
            self._send({"error": "Unauthorized"}, 401)
        elif body["model"] not in served:
            self._send({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
        elif body["max_tokens"] > N_CONTEXT:
            self._refuse(WIDE.format(body["max_tokens"], N_CONTEXT))
        elif "LONG" in prompt:
            self._refuse(LONG)
        elif "DIE" in prompt:
            log(f"RuntimeError: {prompt}")
            os.kill(os.getpid(), signal.SIGKILL)
        elif "SICK" in prompt:
            state["is_well"] = False
            self._send({"error": {"message": "EngineCore encountered an issue."}}, 500)
        else:
            why = "abort" if "ABORT" in prompt else "stop"
            choice = {"index": 0, "finish_reason": why, "text": f"{body['model']} heard {prompt}"}
            usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
            if body.get("stream"):
                self._stream(prompt, choice, usage)
                return
            self._send({"id": "1", "object": "text_completion", "choices": [choice], "usage": usage})

    def _stream(self, prompt, choice, usage):
        """The answer in parts of four characters. CUT: without its end; FAULT: with an error instead."""
        text = choice["text"]
        parts = [{**choice, "text": text[i : i + 4], "finish_reason": None} for i in range(0, len(text), 4)]
        parts[-1]["finish_reason"] = choice["finish_reason"]
        events = [{"choices": [part]} for part in parts]
        events.append({"choices": [], "usage": usage})
        if "FAULT" in prompt:
            events[3:] = [{"error": {"message": "out of luck", "code": 500}}]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for event in events:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        if "CUT" not in prompt:
            self.wfile.write(b"data: [DONE]\n\n")

    def _refuse(self, message):
        self._send({"error": {"message": message, "type": "BadRequestError", "code": 400}}, 400)

    def _is_refused(self):
        return bool(key) and self.headers.get("authorization") != f"Bearer {key}"

    def _send(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
log(f"worker {worker.pid}")
ThreadingHTTPServer((options["--host"], int(options["--port"])), Api).serve_forever()

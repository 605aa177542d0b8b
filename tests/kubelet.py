"""A small kubelet: it places pods on a node of its own, runs each one's command as a real process, asks its probes, and tells the real API server.

What an image holds is said by a table: entry point, arguments, environment. A pod has an address of its own (10.244.0.x, all on the loopback device), so
that each can listen on the same port. What it keeps to, as the real one does: an unknown image is ErrImagePull, then ImagePullBackOff; a program that ends
is started again, later each time, as CrashLoopBackOff; a pod is ready when its probes and its readiness gates say so; a pod that is deleted has its preStop
hook run, then SIGTERM, then, after its grace period, SIGKILL.
"""
import contextlib
import http.server
import itertools
import os
import signal
import ssl
import subprocess
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import requests
import trustme
import urllib3
import yaml

NODE, NETWORK, ADDRESSES = "test-node", "10.244.0", itertools.count(2)


def now() -> str: return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Api:
    """The API server, as an administrator sees it."""
    def __init__(self, kubeconfig: Path):
        config = yaml.safe_load(Path(kubeconfig).read_text())
        self.url, self.token = config["clusters"][0]["cluster"]["server"], config["users"][0]["user"]["token"]
        self.local = threading.local()
        urllib3.disable_warnings()

    def __call__(self, method: str, path: str, body=None, kind: str = "application/json", **query):
        if not hasattr(self.local, "session"):
            self.local.session = requests.Session()
            self.local.session.verify, self.local.session.trust_env = False, False
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        answer = self.local.session.request(method, f"{self.url}/{path}", json=body, params=query, headers=headers, timeout=10)
        if answer.status_code >= 400: raise requests.HTTPError(f"{method} {path}: {answer.status_code} {answer.text[:300]}", response=answer)
        return answer.json()


class Running(threading.Thread):
    """One pod."""
    def __init__(self, kubelet: "Kubelet", pod: dict):
        super().__init__(daemon=True)
        self.kubelet, self.pod, self.name, self.namespace = kubelet, pod, pod["metadata"]["name"], pod["metadata"]["namespace"]
        self.container, self.address = pod["spec"]["containers"][0], f"{NETWORK}.{next(ADDRESSES)}"
        self.log, self.former = kubelet.folder / f"{self.name}.log", kubelet.folder / f"{self.name}.former.log"
        self.process, self.began, self.restarts, self.last, self.waits, self.resume = None, 0., 0, {}, {}, 0.
        self.started = self.ready = False
        self.counts, self.due, self.deleted, self.told = {}, {}, None, None

    # What it runs

    def image(self) -> dict | None: return self.kubelet.images.get(self.container["image"])

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HEALTH_PREDICT_")}
        given = {o["name"]: o["value"] for o in self.container.get("env", ())}
        own = {"HEALTH_PREDICT_SERVING__HOST": self.address, "HEALTH_PREDICT_SERVING__LOCAL": str(self.kubelet.folder / self.name)}    # its network, its disk
        return {**kept, **self.image().get("env", {}), **given, **own}

    def start_process(self):
        made, image = self.container, self.image()
        command = [*(made.get("command") or image["entrypoint"]), *(made.get("args") or image.get("args", []))]
        if self.log.exists(): self.log.replace(self.former)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, env=self.environment(), cwd=image.get("cwd"), stdout=log, stderr=log, start_new_session=True)
        self.began, self.started, self.ready, self.counts, self.due, self.waits = time.monotonic(), "startupProbe" not in made, False, {}, {}, {}

    # What it is asked

    def probe(self, kind: str) -> bool | None:
        """Whether a probe holds, after as many answers as it wants; None where it isn't due."""
        if (rule := self.container.get(kind)) is None: return True if kind == "readinessProbe" else None
        if time.monotonic() < self.due.get(kind, self.began + rule.get("initialDelaySeconds", 0)): return None
        self.due[kind] = time.monotonic() + rule.get("periodSeconds", 10)
        port = rule["httpGet"]["port"]
        port = next((o["containerPort"] for o in self.container["ports"] if o.get("name") == port), port)
        url = f"http://{self.address}:{port}{rule['httpGet']['path']}"
        try: good = requests.get(url, timeout=rule.get("timeoutSeconds", 1), proxies={"http": ""}).status_code < 400
        except requests.RequestException: good = False
        same, count = self.counts.get(kind, (good, 0))
        self.counts[kind] = (good, count + 1 if same == good else 1)
        return good if self.counts[kind][1] >= rule.get("successThreshold" if good else "failureThreshold", 1 if good else 3) else None

    def ask(self):
        if not self.started:
            answer = self.probe("startupProbe")
            self.started = answer is True
            if answer is False: self.process.kill()
            return
        if (answer := self.probe("readinessProbe")) is not None: self.ready = answer
        if self.probe("livenessProbe") is False: self.process.kill()

    # What it tells

    def status(self) -> dict:
        alive = self.process is not None and self.process.poll() is None
        state = {"waiting": self.waits} if self.waits else {"running": {"startedAt": now()}} if alive else {"waiting": {"reason": "ContainerCreating"}}
        gates = [o["conditionType"] for o in self.pod["spec"].get("readinessGates", ())]
        opened = {o["type"] for o in self.pod.get("status", {}).get("conditions", ()) if o["status"] == "True"}
        running = alive and self.ready and not self.waits
        holds = {"PodScheduled": True, "Initialized": True, "ContainersReady": running, "Ready": running and set(gates) <= opened}
        return {"phase": "Running" if alive or self.restarts else "Pending", "podIP": self.address, "podIPs": [{"ip": self.address}], "hostIP": "127.0.0.1",
            "conditions": [{"type": k, "status": str(bool(v)), "lastTransitionTime": now()} for k, v in holds.items()],
            "containerStatuses": [{"name": self.container["name"], "image": self.container["image"], "imageID": "", "ready": bool(running),
                                   "started": bool(self.started), "restartCount": self.restarts, "state": state, "lastState": self.last}]}

    def tell(self):
        status = self.status()
        essence = str([(o["type"], o["status"]) for o in status["conditions"]]) + str(status["containerStatuses"][0]["restartCount"]) + str(self.waits)
        if essence == self.told: return
        self.kubelet.api("PATCH", f"api/v1/namespaces/{self.namespace}/pods/{self.name}/status", {"status": status}, "application/merge-patch+json")
        self.told = essence
        if self.ready: self.kubelet.ready_at.setdefault(self.address, time.monotonic())

    # Its life

    def run(self):
        while not self.kubelet.stopping.is_set():
            try:
                if self.deleted is not None: return self.end()
                self.step()
                self.tell()
            except requests.RequestException as e:    # the API server is away, or the pod is gone already
                if getattr(e.response, "status_code", None) == 404: return self.kill()
            time.sleep(.05)
        self.kill()

    def step(self):
        if self.image() is None:
            self.waits = {"reason": "ImagePullBackOff" if self.waits else "ErrImagePull", "message": f"manifest for {self.container['image']} not found"}
        elif self.process is None: self.start_process()
        elif self.waits and time.monotonic() > self.resume: self.start_process()
        elif not self.waits and (code := self.process.poll()) is not None:
            self.last, self.restarts, self.ready = {"terminated": {"exitCode": code, "reason": "Error"}}, self.restarts + 1, False
            self.waits = {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}
            self.resume = time.monotonic() + min(.2 * 2 ** self.restarts, 5)
        elif not self.waits: self.ask()

    def end(self):
        self.kubelet.ended_at[self.address] = time.monotonic()
        grace, began = self.deleted, time.monotonic()
        hook = self.container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if hook and self.process: subprocess.run(hook, timeout=max(grace, .1), check=False)
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try: self.process.wait(max(grace - (time.monotonic() - began), .1))
            except subprocess.TimeoutExpired: self.kubelet.killed.append(self.name)
        self.kill()
        while not self.kubelet.stopping.is_set():
            try: return self.kubelet.api("DELETE", f"api/v1/namespaces/{self.namespace}/pods/{self.name}", {"gracePeriodSeconds": 0})
            except requests.HTTPError: return
            except requests.RequestException: time.sleep(.1)

    def kill(self):
        if self.process and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError): os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Kubelet(threading.Thread):
    """One node and its pods."""
    def __init__(self, kubeconfig: Path, images: dict[str, dict], folder: Path):
        super().__init__(daemon=True)
        self.api, self.images, self.folder, self.stopping, self.pods = Api(kubeconfig), images, folder, threading.Event(), {}
        self.ready_at, self.ended_at, self.killed, self.beat = {}, {}, [], 0.
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = self.log_server()

    def run(self):
        port = self.logs.server_address[1]
        self.api("POST", "api/v1/nodes", {"metadata": {"name": NODE}})
        while not self.stopping.wait(.05):
            with contextlib.suppress(requests.RequestException):    # the API server is away: pods go on
                if time.monotonic() - self.beat > 5:
                    ready = {"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastHeartbeatTime": now(), "lastTransitionTime": now()}
                    facts = {"conditions": [ready], "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}
                    self.api("PATCH", f"api/v1/nodes/{NODE}/status", {"status": facts | {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}},
                             "application/merge-patch+json")
                    self.beat = time.monotonic()
                self.look(self.api("GET", "api/v1/pods")["items"])

    def look(self, pods: list[dict]):
        for pod in pods:
            meta, key = pod["metadata"], pod["metadata"]["uid"]
            if key not in self.pods:
                if not pod["spec"].get("nodeName"):
                    self.api("POST", f"api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/binding",
                             {"metadata": {"name": meta["name"]}, "target": {"apiVersion": "v1", "kind": "Node", "name": NODE}})
                self.pods[key] = Running(self, pod)
                self.pods[key].start()
            self.pods[key].pod = pod
            if "deletionTimestamp" in meta and self.pods[key].deleted is None: self.pods[key].deleted = meta.get("deletionGracePeriodSeconds", 30)

    def log_server(self) -> http.server.ThreadingHTTPServer:
        """Where the API server fetches logs."""
        kubelet = self

        class Logs(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                url = urlsplit(self.path)
                query, name = parse_qs(url.query), url.path.split("/")[3]
                pod = next((o for o in kubelet.pods.values() if o.name == name), None)
                file = pod and (pod.former if query.get("previous") == ["true"] else pod.log)
                self.send_response(200 if file and file.exists() else 404)
                self.end_headers()
                if file and file.exists(): self.wfile.write(b"".join(file.read_bytes().splitlines(keepends=True)[-int(query.get("tailLines", ["100"])[0]):]))

            def log_message(self, *args): pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Logs)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def stop(self):
        self.stopping.set()
        for o in self.pods.values(): o.join(20)
        self.logs.shutdown()

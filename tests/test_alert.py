"""Alerts, through a real SMTP server and a real HTTP server, well and ill: once, in time, with no secret and no patient, and never in the way of a run."""
import base64
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from typer.testing import CliRunner

from health_predict import alert, cli
from health_predict.alert import Alert, AlertError, send, stage_failed, waiting
from health_predict.doctor import look_at_alerts
from health_predict.settings import load_settings
from health_predict.storage import Tree

ROOT = Path(__file__).parents[1]
DRIFT = Alert("urgent", "Concept drift: ranking fell below its threshold", "concept any", 4, "drift", "A full search runs now.",
              {"AUROC": .6512, "fall": .0471, "rows": 16283}, {"drift": "4/drift.html"})
FISH = "swordfish"
NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)


class Mailbox:
    """What an SMTP server does with mail: keeps it, after as many `answers` of another kind as are given; `pause` delays each."""
    def __init__(self): self.mails, self.tries, self.answers, self.pause = [], 0, [], 0

    async def handle_DATA(self, server, session, envelope):
        import asyncio
        self.tries += 1
        await asyncio.sleep(self.pause)
        if self.answers: return self.answers.pop(0)
        self.mails.append((envelope.rcpt_tos, message_from_bytes(envelope.content, policy=policy.default)))
        return "250 OK"


@contextmanager
def smtp(box, **options):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = Controller(box, hostname="127.0.0.1", port=port, **options)
    server.start()
    try: yield port
    finally: server.stop()


@pytest.fixture
def box(): return Mailbox()


@pytest.fixture
def mail_port(box):
    with smtp(box) as port: yield port


class Chat(BaseHTTPRequestHandler):
    """A webhook; `plan` holds the statuses to answer with, then 200."""
    def do_POST(self):
        kept = self.server
        kept.tries.append(time.monotonic())
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(kept.pause)
        status = kept.plan.pop(0) if kept.plan else 200
        if status == "drip":    # a byte now and then, for ever
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(60):
                try: self.wfile.write(b"X"); self.wfile.flush()
                except OSError: return
                time.sleep(.1)
            return
        if status == 200: kept.said.append(body["text"])
        self.send_response(status)
        if status == 429: self.send_header("Retry-After", "1")
        if status == 302: self.send_header("Location", "/elsewhere")
        self.end_headers()

    def do_HEAD(self): self.send_response(405); self.end_headers()
    def log_message(self, *args): pass


@pytest.fixture
def chat():
    with ThreadingHTTPServer(("127.0.0.1", 0), Chat) as server:
        server.plan, server.said, server.tries, server.pause, server.daemon_threads = [], [], [], 0, True
        threading.Thread(target=server.serve_forever, args=(.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def set_up(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    def made(mail=None, web=None, **options):
        given = {"pause": .01, "timeout": 5, "base_url": "https://reports.example.org"} | options
        if mail: given = {"email_to": "lead@ward.example, it@ward.example", "email_host": "127.0.0.1", "email_port": mail, "email_security": "none"} | given
        if web: given["webhook_url"] = f"http://127.0.0.1:{web if isinstance(web, int) else web.server_port}/services/SECRET"
        return load_settings(storage={"root": str(tmp_path)}, alert=given)
    return made


def closed_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_both_channels_say_the_same(set_up, box, mail_port, chat):
    assert send(set_up(mail_port, chat), DRIFT, NOON) == {"email": "sent", "webhook": "sent"}
    [(people, mail)] = box.mails
    text, page = (mail.get_body([kind]).get_content() for kind in ("plain", "html"))
    assert people == ["lead@ward.example", "it@ward.example"]
    assert mail["Subject"] == "[URGENT] health-predict, batch 4, drift: Concept drift: ranking fell below its threshold" and mail["Importance"] == "high"
    for said in (text, page, chat.said[0]):
        for part in ("0.651", "16,283", "A full search runs now.", "https://reports.example.org/4/drift.html", "2030-01-01 12:00 UTC"): assert part in said
    assert waiting(set_up(mail_port, chat)) == 0


def test_least_severity_and_markup_in_texts(set_up, box, mail_port, chat):
    told = Alert("info", "Line one\nBcc: all@example.org <b>&", figures={"a<b": "x & y"})
    assert send(set_up(mail_port, chat, email_severity="urgent"), told) == {"email": "below", "webhook": "sent"}
    assert "&lt;b&gt;&amp;" in chat.said[0] and "a&lt;b: x &amp; y" in chat.said[0]
    assert send(set_up(mail_port, email_severity="info"), told) == {"email": "sent"}
    mail = box.mails[0][1]
    assert mail["Bcc"] is None and mail["Subject"].endswith("Line one Bcc: all@example.org <b>&")
    assert "<b>&" not in mail.get_body(["html"]).get_content()


def test_repeated_alerts_are_held_back_for_a_time_unless_more_severe(set_up, chat):
    s, worse = set_up(web=chat), Alert("urgent", "Drift", "drift")
    at = lambda hours, what: send(s, what, NOON + timedelta(hours=hours))["webhook"]
    drift = Alert("warning", "Drift", "drift")
    assert [at(0, drift), at(23, drift), at(23, worse), at(24.1, drift)] == ["sent", "repeated", "sent", "sent"]
    assert at(25, Alert("warning", "Other words", "drift")) == "repeated" and len(chat.said) == 3


@pytest.mark.parametrize("plan, tries", [([500, 503], 3), ([429], 2), ([408], 2)])
def test_what_may_pass_is_tried_again(set_up, chat, plan, tries):
    chat.plan[:] = plan
    assert send(set_up(web=chat), DRIFT) == {"webhook": "sent"}
    assert len(chat.tries) == tries and len(chat.said) == 1
    if 429 in plan: assert chat.tries[1] - chat.tries[0] >= 1    # as long as the server asked for


@pytest.mark.parametrize("status", [302, 400, 403, 404, 410])
def test_what_will_not_pass_is_tried_once_and_waits(set_up, chat, status):
    chat.plan[:] = [status]
    assert send(set_up(web=chat), DRIFT) == {"webhook": "waiting"} and len(chat.tries) == 1
    assert send(set_up(web=chat)) == {} and len(chat.said) == 1    # next time


def test_the_spool_recovers_worst_first_and_one_refused_message_holds_up_no_other(set_up, chat, caplog):
    down = set_up(web=closed_port(), attempts=1)
    for n, severity in enumerate(["info", "warning", "urgent"]):
        assert send(down, Alert(severity, f"Alert {n}"), NOON) == {"webhook": "waiting"}
    assert waiting(down) == 3 and "kept, to be sent next time: Alert 2" in caplog.text
    chat.plan[:] = [400]
    assert send(set_up(web=chat), Alert("info", "Up again"), NOON + timedelta(hours=1)) == {"webhook": "sent"}
    assert [o.split(": ", 1)[1].split("\n")[0] for o in chat.said] == ["Alert 1", "Alert 0", "Up again"] and waiting(down) == 1
    assert "2030-01-01 12:00 UTC" in chat.said[0]    # when it was raised, not when it was sent
    assert send(set_up(web=chat)) == {} and "Alert 2" in chat.said[3]


def test_the_spool_is_bounded(set_up, chat, caplog):
    down = set_up(web=closed_port(), attempts=1, spool=3)
    for n in range(5): send(down, Alert("info", f"Alert {n}"), NOON + timedelta(minutes=n))
    assert waiting(down) == 3 and "dropped" in caplog.text
    send(set_up(web=chat, spool=3))
    assert [o.split(": ", 1)[1].split("\n")[0] for o in chat.said] == ["Alert 2", "Alert 3", "Alert 4"]


@pytest.mark.parametrize("kind", ["hangs", "drips"])
def test_a_slow_server_holds_up_neither_the_run_nor_the_other_channel(set_up, box, mail_port, chat, kind):
    if kind == "hangs": chat.pause = 3
    else: chat.plan[:] = ["drip"]
    began = time.monotonic()
    assert send(set_up(mail_port, chat, timeout=.4 if kind == "hangs" else 5, attempts=2, patience=2), DRIFT) == {"email": "sent", "webhook": "waiting"}
    assert time.monotonic() - began < 2
    box.pause = 3
    assert send(set_up(mail_port, patience=.5), Alert("warning", "x"))["email"] == "waiting"


def test_mail_server_says_no(set_up, box, mail_port):
    box.answers[:] = ["451 later"]
    assert send(set_up(mail_port), DRIFT) == {"email": "sent"} and box.tries == 2    # greylisting
    box.answers[:] = ["554 looks like spam"]
    assert send(set_up(mail_port), Alert("urgent", "x")) == {"email": "waiting"} and box.tries == 3


def test_a_mail_sent_twice_has_one_message_id(set_up):
    rule = set_up(25).alert
    one, again, later = (alert.mail(rule, DRIFT, NOON + timedelta(hours=h))["Message-ID"] for h in (0, 0, 1))
    assert one == again != later


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate for 127.0.0.1, and its authority's file."""
    made, file = trustme.CA(), tmp_path_factory.mktemp("ca") / "ca.pem"
    made.cert_pem.write_to_path(file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.issue_cert("127.0.0.1").configure_cert(context)
    return context, file


@pytest.mark.parametrize("security", ["starttls", "ssl"])
def test_encrypted_with_a_login(set_up, box, authority, monkeypatch, caplog, security):
    context, file = authority
    login = lambda server, session, envelope, mechanism, data: AuthResult(success=(data.login, data.password) == (b"bot", FISH.encode()), handled=False)
    options = {"ssl_context": context} if security == "ssl" else {"tls_context": context, "require_starttls": True}
    with smtp(box, authenticator=login, auth_required=True, auth_require_tls=security == "starttls", **options) as port:
        s = set_up(port, email_security=security, email_user="bot", email_password=FISH, attempts=1)
        assert send(s, DRIFT, NOON) == {"email": "waiting"} and not box.mails    # an authority that nobody knows
        assert "no safe connection" in caplog.text
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert send(s, Alert("urgent", "Encrypted")) == {"email": "sent"} and len(box.mails) == 2
        [found] = look_at_alerts(s)
        assert (found.state, found.what) == ("ok", "email") and "login" in found.said
        wrong = set_up(port, email_security=security, email_user="bot", email_password=FISH[::-1])
        assert send(wrong, Alert("urgent", "Wrong password")) == {"email": "waiting"}
        [found, _] = look_at_alerts(wrong)
        assert found.state == "fault" and "refuses [alert] email_user or its password" in found.said
    for secret in (FISH, FISH[::-1]): assert secret not in caplog.text and base64.b64encode(secret.encode()).decode() not in caplog.text


def test_secrets_are_never_said(set_up, chat, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    s = set_up(web=closed_port(), mail=closed_port(), email_password=FISH, attempts=2)
    send(s, DRIFT)
    chat.plan[:] = [500, "drip"]
    send(set_up(web=chat, patience=1), DRIFT)
    send(set_up(web=chat))
    assert "kept" in caplog.text and chat.said
    said = caplog.text + repr(s) + str(s.alert) + s.model_dump_json() + "".join(f.said + f.remedy for f in look_at_alerts(s))
    said += "".join(p.read_text() for p in Path(tmp_path).rglob("*.json"))
    assert "SECRET" not in said and FISH not in said


def test_a_row_can_not_get_into_an_alert():
    failed = stage_failed(3, "ingest", ValueError("incoming/3.csv, line 12: patient 4711, age '[95-105)'"))
    assert "4711" not in repr(failed) and "ValueError" in failed.title and failed.links == {"report": "3/ingest.html"}
    for bad in ({"row": {"age": 70}}, {"rows": [1, 2]}, {"text": "x" * 101}):
        with pytest.raises(AlertError, match="no number and no short text"): Alert("info", "x", figures=bad)


def test_a_full_or_forbidden_disk_does_not_silence_it(set_up, chat, tmp_path, caplog):
    (tmp_path / "state").write_text("a file where a folder should be")
    assert send(set_up(web=chat), DRIFT) == {"webhook": "sent"} and len(chat.said) == 1
    assert send(set_up(web=closed_port(), attempts=1), DRIFT) == {"webhook": "lost"} and "alert lost" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", '{"sent": {}, "waiting": [{"channel": "webhook", "alert": {"title": 1}, "since": "x"}]}'])
def test_a_damaged_spool_is_put_aside(set_up, chat, tmp_path, content):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "alerts.json").write_text(content)
    assert send(set_up(web=chat), DRIFT) == {"webhook": "sent"}
    assert (tmp_path / "state" / "alerts.damaged.json").read_text() == content


def test_a_fault_of_ours_fails_no_run_either(set_up, chat, tmp_path, monkeypatch):
    monkeypatch.setattr(alert, "TEMPLATES", tmp_path / "nowhere")
    alert.templates.cache_clear()
    assert send(set_up(web=chat), DRIFT) == {"webhook": "waiting"}
    monkeypatch.undo()
    alert.templates.cache_clear()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert send(set_up(web=chat)) == {} and len(chat.said) == 1


def test_killed_while_sending_it_is_sent_next_time(set_up, chat, tmp_path):
    chat.pause = 30
    code = ("import sys; from health_predict.alert import *; from health_predict.settings import load_settings\n"
            "send(load_settings(storage={'root': sys.argv[1]}, alert={'webhook_url': sys.argv[2]}), Alert('urgent', 'Last words'))")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "HEALTH_PREDICT_SETTINGS": str(ROOT / "settings.ini")}
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), f"http://127.0.0.1:{chat.server_port}/x"], env=environment)
    ends = time.monotonic() + 20
    while not chat.tries and time.monotonic() < ends: time.sleep(.02)
    child.kill(); child.wait()
    chat.pause = 0
    send(set_up(web=chat))    # the dead process holds no lock
    assert len(chat.said) == 1 and "Last words" in chat.said[0] and waiting(set_up(web=chat)) == 0


def test_command_line_and_doctor(set_up, chat, tmp_path, monkeypatch):
    monkeypatch.setenv("HEALTH_PREDICT_STORAGE", str(tmp_path))
    run = lambda: CliRunner().invoke(cli.app, ["alert", "test"])
    assert "no channel is set" in str(run().exception)
    [found] = look_at_alerts(set_up())
    assert (found.state, found.what) == ("note", "alerts")
    send(set_up(web=closed_port(), attempts=1), DRIFT)
    monkeypatch.setenv("HEALTH_PREDICT_ALERT__WEBHOOK_URL", f"http://127.0.0.1:{chat.server_port}/services/SECRET")
    found = list(look_at_alerts(set_up(web=chat)))
    assert [o.state for o in found] == ["ok", "note"] and "1 wait" in found[1].said and not chat.said    # looking sends nothing
    done = run()
    assert done.exit_code == 0 and "webhook    sent\n1 waited, 0 still wait" in done.stdout and len(chat.said) == 2
    chat.plan[:] = [404]
    assert "no test could be sent by webhook" in str(run().exception) and waiting(set_up(web=chat)) == 0


def test_several_send_at_once(set_up, chat):
    s = set_up(web=chat)
    threads = [threading.Thread(target=send, args=(s, Alert("info", f"Alert {n % 5}"))) for n in range(10)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert len(chat.said) == 5 and waiting(s) == 0
    assert list(Tree(s).state.glob("*.tmp")) == []

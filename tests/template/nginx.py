"""nginx with the configuration that the boot script of a Wallarm node writes."""

import re
import signal
import socket
import subprocess
import time
from pathlib import Path

MODSECURITY = Path("/usr/lib/nginx/modules/ngx_http_modsecurity_module.so")
NGINX = Path("/usr/sbin/nginx")


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


class Nginx:
    """nginx with what the script wrote. Where it needs the image's own parts, stand others."""

    def __init__(self, folder, written, *, module_answers=True, engine=False, upstream=None):
        self.folder, self.written = folder, written
        self.port, self.health, status = free_ports(3)
        kept = [line for line in written.splitlines() if not line.strip().startswith("wallarm_")]
        assert len(written.splitlines()) - len(kept) == 7
        text = "\n".join(kept)
        replaced = {
            "listen 8080 ": f"listen 127.0.0.1:{self.port} ",
            "listen 8081;": f"listen 127.0.0.1:{self.health};",
            "http://127.0.0.8/": f"http://127.0.0.1:{status}/",
            "/var/log/nginx/error.log": f"{self.folder}/error.log",
            "    server_name _;\n\n    # What": f"    server_name _;\n{self.engine() if engine else ''}\n    # What",
        }
        if upstream:
            replaced["        return 200;"] = f"        proxy_pass http://127.0.0.1:{upstream};"
        # Only the first: the health server's stays off.
        text = text.replace("access_log off;", f"access_log {self.folder}/access.log seen;", 1)
        for old, new in replaced.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        others = ""
        if module_answers:
            others = f"server {{ listen 127.0.0.1:{status}; location = /wallarm-status {{ return 200 '{{}}'; }} }}\n"
        temporary = "".join(
            f"{name}_temp_path {self.folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.folder / "nginx.conf").write_text(
            (f"load_module {MODSECURITY};\n" if engine else "")
            + f"daemon off; user root; worker_processes 1; pid {self.folder}/pid; error_log {self.folder}/main.log;\n"
            "events { worker_connections 512; }\nhttp {\n"
            "log_format seen '$remote_addr $http_x_server_addr $http_x_server_port $status $connection $request';\n"
            f"{temporary}{text}\n{others}}}\n"
        )
        self.process = subprocess.Popen([NGINX, "-c", self.folder / "nginx.conf", "-p", self.folder])
        deadline = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "main.log").read_text()
            time.sleep(0.02)

    def engine(self):
        rules = 'SecRuleEngine On\nSecRequestBodyAccess On\nSecRule REQUEST_URI|REQUEST_BODY|ARGS "evil" "id:1,phase:2,deny,status:403"'
        (self.folder / "rules.conf").write_text(rules)
        return f"modsecurity on; modsecurity_rules_file {self.folder}/rules.conf;\n"

    def talk(self, data, count, port=None):
        """Sends all on one connection; gives the status lines of so many answers."""
        with socket.create_connection(("127.0.0.1", port or self.port)) as connection:
            received, left, found = b"", memoryview(data), []
            while len(found) < count:
                connection.settimeout(0.001 if left else 20)
                sending = bool(left)
                if sending:
                    left = left[connection.send(left[: 1 << 16]) :]
                try:
                    more = connection.recv(1 << 20)
                except TimeoutError:
                    assert sending, "no answer within 20 s"
                    continue
                if not more:
                    break
                received += more
                while answer := re.match(rb"HTTP/1.1 (\d+) .*?\r\nContent-Length: (\d+)\r\n.*?\r\n\r\n", received, re.DOTALL):
                    if len(received) < (end := answer.end() + int(answer[2])):
                        break
                    found.append(int(answer[1]))
                    received = received[end:]
        return found

    def seen(self):
        # Only when it has ended is the last line surely written.
        self.stop()
        return [line.split(" ") for line in (self.folder / "access.log").read_text().splitlines()]

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(20)

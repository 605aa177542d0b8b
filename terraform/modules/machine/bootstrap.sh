#!/bin/bash
# Brings a Debian 12 machine to what /etc/health-predict/bootstrap.env says. Runs at every boot: it looks before it acts, says only what it
# changed, and can be killed anywhere and run again.
set -euo pipefail

CONFIG=/etc/health-predict
HOME_DIR=/var/lib/health-predict     # the user's home: Minikube's and Docker's files
DATA=/srv/health-predict             # the data disk
RELEASES=/opt/health-predict
LOGS=/var/log/health-predict
USER_NAME=health-predict
UNITS=/etc/systemd/system
changed=0 restart=''
# shellcheck source=/dev/null
. "$CONFIG/bootstrap.env"
export AWS_DEFAULT_REGION=$AWS_REGION DEBIAN_FRONTEND=noninteractive

say() { echo "$(date -u +%FT%TZ) $*"; }
did() { changed=$((changed + 1)); say "$*"; }

# put FILE [MODE]: the file becomes what standard input says; true where that changed it.
put() {
  local new; new=$(mktemp "$1.XXXXXX")
  cat > "$new"; chmod "${2:-644}" "$new"
  if cmp -s "$new" "$1"; then rm "$new"; return 1; fi
  mv "$new" "$1"; did "wrote $1"
}

# fetch URL SHA256 FILE: with an empty SHA256 the sender's TLS certificate is all there is to trust.
fetch() {
  case $1 in
    s3://*) aws s3 cp --only-show-errors "$1" "$3" ;;
    *) curl --fail --silent --show-error --location --retry 5 --retry-all-errors --proto '=https' --output "$3" "$1" ;;
  esac
  if [ -z "$2" ] || echo "$2  $3" | sha256sum --check --status; then return; fi
  say "$1 has the SHA-256 $(sha256sum < "$3" | cut -d' ' -f1), not $2; nothing of it was installed. Correct the variable, or ask who changed the file." >&2
  rm -f "$3"; exit 1
}

packages() {
  local wanted=(awscli ca-certificates cron curl git logrotate make python3.11 python3.11-venv unattended-upgrades) missing=() o
  [ -z "$MINIKUBE_VERSION" ] || wanted+=(docker.io iptables)
  for o in "${wanted[@]}"; do
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$o" 2>/dev/null)" = installed ] || missing+=("$o")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  dpkg --configure -a    # where an earlier start was cut off
  apt-get -qq update
  apt-get -qq -o DPkg::Lock::Timeout=600 install --yes --no-install-recommends "${missing[@]}" > /dev/null
  did "installed ${missing[*]}"
}

# agent NAME URL SHA256: AWS's own packages, which Debian does not have.
agent() {
  local deb=$RELEASES/$1.deb
  [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" != installed ] || return 0
  fetch "$2" "$3" "$deb"
  dpkg --install "$deb" > /dev/null
  rm "$deb"
  did "installed $1"
}

user() {
  if ! id "$USER_NAME" > /dev/null 2>&1; then
    useradd --system --home-dir "$HOME_DIR" --create-home --shell /usr/sbin/nologin "$USER_NAME"
    did "made the user $USER_NAME"
  fi
  if [ -n "$MINIKUBE_VERSION" ] && ! id -nG "$USER_NAME" | grep -qw docker; then
    usermod --append --groups docker "$USER_NAME"
    did "let $USER_NAME use docker"
  fi
}

# The disk that outlives the machine: a file system is made only where there is none.
disk() {
  local device=/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_${DATA_VOLUME/-/} tries=150
  if [ -n "$DATA_VOLUME" ] && ! mountpoint -q "$DATA"; then
    until [ -e "$device" ]; do
      tries=$((tries - 1))
      [ $tries -gt 0 ] || { say "the data disk $DATA_VOLUME is not attached; wait for terraform apply to end, or attach it" >&2; exit 1; }
      sleep 2
    done
    if [ -z "$(blkid -o value -s TYPE "$device" || true)" ]; then mkfs.ext4 -q -L health-predict "$device"; did "made a file system on $DATA_VOLUME"; fi
    mkdir -p "$DATA"
    if ! grep -q " $DATA " /etc/fstab; then
      echo "UUID=$(blkid -o value -s UUID "$device") $DATA ext4 defaults,nofail,nodev,nosuid 0 2" >> /etc/fstab
      did "wrote /etc/fstab"
    fi
    mount "$DATA"
    did "mounted $DATA"
  fi
  local o; for o in "$DATA" "$DATA/storage" "$LOGS"; do
    [ "$(stat --format=%U "$o" 2>/dev/null)" = "$USER_NAME" ] || { install -d -o "$USER_NAME" -g "$USER_NAME" -m 750 "$o"; did "made $o"; }
  done
}

# A release is a folder of its own with its environment, made whole before `current` points to it; the former one stays for a way back.
release() {
  local folder=$RELEASES/${RELEASE_SHA256:0:12} former archive
  if [ ! -e "$folder/.complete" ]; then
    archive=$RELEASES/release.tar.gz
    fetch "$RELEASE_URL" "$RELEASE_SHA256" "$archive"
    rm -rf "$folder"; mkdir -p "$folder"
    tar --extract --gzip --no-same-owner --strip-components=1 --directory "$folder" --file "$archive"
    make --silent --directory "$folder" .venv/.ready > /dev/null
    python3.11 -m compileall -q "$folder/health_predict"
    rm "$archive"; touch "$folder/.complete"
    did "installed release ${RELEASE_SHA256:0:12}"
  fi
  former=$(readlink "$RELEASES/current" || true)
  if [ "$former" != "$folder" ]; then
    ln -sfn "$folder" "$RELEASES/current.new"; mv -T "$RELEASES/current.new" "$RELEASES/current"
    find "$RELEASES" -mindepth 1 -maxdepth 1 -type d ! -path "$folder" ! -path "${former:-$folder}" -exec rm -rf {} +
    did "release ${RELEASE_SHA256:0:12} is current"
    restart=yes
  fi
}

# Secrets come from SSM Parameter Store, each named as its environment variable; where AWS is away, the last ones stay.
secrets() {
  local answer lines; answer=$(mktemp); lines=$(mktemp)
  if aws ssm get-parameters-by-path --path "/$NAME/" --recursive --with-decryption --output json > "$answer"; then
    python3.11 - "$answer" > "$lines" <<'PY'
import json, re, sys
for o in sorted(json.load(open(sys.argv[1]))["Parameters"], key=lambda o: o["Name"]):
    name, value = o["Name"].rsplit("/", 1)[1], o["Value"]
    if not re.fullmatch(r"HEALTH_PREDICT_[A-Z0-9_]+|MLFLOW_TRACKING_URI|RAY_AUTH_TOKEN", name): print(f"{o['Name']}: not the name of a setting, passed over", file=sys.stderr)
    elif re.search(r"['\\\r\n]", value): print(f"{o['Name']}: has a quote, a backslash or several lines, passed over", file=sys.stderr)
    else: print(f"{name}='{value}'")
PY
    if put "$CONFIG/secrets.env" 640 < "$lines"; then restart=yes; fi
  else
    say "secrets could not be read from SSM below /$NAME/; going on with those of the last start" >&2
    [ -e "$CONFIG/secrets.env" ] || put "$CONFIG/secrets.env" 640 < /dev/null
  fi
  rm "$answer" "$lines"
  chgrp "$USER_NAME" "$CONFIG/secrets.env"
}

# `health-predict` for operators, cron and units: as its user, with settings and secrets, in the release that is current.
command_line() {
  put /usr/local/bin/health-predict 755 <<'SH' || true
#!/bin/sh
if [ "$(id -u)" = 0 ]; then exec runuser -u health-predict -- "$0" "$@"; fi
set -ae
. /etc/health-predict/settings.env
. /etc/health-predict/secrets.env
export HOME=/var/lib/health-predict PATH="/opt/health-predict/current/.venv/bin:/usr/local/bin:/usr/bin:/bin"
cd /opt/health-predict/current
exec .venv/bin/health-predict "$@"
SH
}

minikube() {
  local file=/usr/local/bin/minikube
  [ -n "$MINIKUBE_VERSION" ] || return 0
  if ! echo "$MINIKUBE_SHA256  $file" | sha256sum --check --status 2>/dev/null; then
    fetch "https://github.com/kubernetes/minikube/releases/download/v$MINIKUBE_VERSION/minikube-linux-amd64" "$MINIKUBE_SHA256" "$file.new"
    chmod 755 "$file.new"; mv "$file.new" "$file"
    did "installed minikube $MINIKUBE_VERSION"
  fi
}

# unit NAME: a systemd unit from standard input, enabled and running; started anew where it, the release or a secret changed.
unit() {
  local anew=$restart
  if put "$UNITS/$1"; then anew=yes; systemctl daemon-reload; fi
  systemctl is-enabled --quiet "$1" || systemctl enable --quiet "$1"
  if [ -n "$anew" ] || ! systemctl is-active --quiet "$1"; then systemctl restart "$1"; fi
}

# service NAME ARGUMENTS: a command of health-predict that systemd keeps running, with as few rights as it needs.
service() {
  unit "health-predict-$1.service" <<UNIT
[Unit]
Description=health-predict ${*:2}
After=network-online.target
[Service]
ExecStart=/usr/local/bin/health-predict ${*:2}
User=$USER_NAME
Restart=always
RestartSec=5
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=yes
ReadWritePaths=$DATA $HOME_DIR $LOGS
StandardOutput=append:$LOGS/$1.log
StandardError=inherit
[Install]
WantedBy=multi-user.target
UNIT
}

# Minikube's network is inside the machine: a socket outside passes on to the Service's NodePort.
doorway() {
  put "$UNITS/health-predict-api.service" <<UNIT || true
[Unit]
Description=health-predict API, passed on to the cluster
Requires=health-predict-api.socket
After=health-predict-api.socket
[Service]
ExecStart=/usr/lib/systemd/systemd-socket-proxyd 192.168.49.2:$NODE_PORT
DynamicUser=yes
PrivateTmp=yes
UNIT
  unit health-predict-api.socket <<UNIT
[Unit]
Description=health-predict API, passed on to the cluster
[Socket]
ListenStream=$API_LISTEN
[Install]
WantedBy=sockets.target
UNIT
}

logs() {
  put /etc/logrotate.d/health-predict <<ROTATE || true
$LOGS/*.log {
  weekly
  rotate 8
  compress
  copytruncate
  missingok
  notifempty
  su $USER_NAME $USER_NAME
}
ROTATE
  local to=/opt/aws/amazon-cloudwatch-agent/etc/health-predict.json anew=''
  [ -d "${to%/*}" ] || return 0
  if put "$to" <<JSON
{"agent": {"run_as_user": "root"}, "logs": {"logs_collected": {"files": {"collect_list": [
  {"file_path": "$LOGS/*.log", "log_group_name": "$LOG_GROUP", "log_stream_name": "{instance_id}"},
  {"file_path": "$DATA/storage/logs/*.log", "log_group_name": "$LOG_GROUP", "log_stream_name": "{instance_id}-runs"}]}}}}
JSON
  then anew=yes; fi
  if [ -n "$anew" ] || ! systemctl is-active --quiet amazon-cloudwatch-agent.service; then
    /opt/aws/amazon-cloudwatch-agent/bin/amazon-cloudwatch-agent-ctl -a fetch-config -m ec2 -s -c "file:$to" > /dev/null
  fi
}

main() {
  umask 022
  mkdir -p "$RELEASES"
  packages
  agent amazon-ssm-agent "$SSM_URL" "$SSM_SHA256"
  agent amazon-cloudwatch-agent "$CLOUDWATCH_URL" "$CLOUDWATCH_SHA256"
  user
  disk
  release
  secrets
  command_line
  minikube
  [ -z "$MLFLOW" ] || service mlflow mlflow --port 5000
  if [ -n "$MINIKUBE_VERSION" ]; then doorway; else service api serve --host "${API_LISTEN%:*}" --port "${API_LISTEN#*:}"; fi
  logs
  health-predict schedule install
  say "$([ $changed = 0 ] && echo "nothing had to change" || echo "$changed change(s)")"
}

main

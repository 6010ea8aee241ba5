#!/bin/sh
# Writes random secrets for compose.yaml into secrets/, once; what is there stays. Containers run as uid 1000.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets && chmod 711 secrets
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
write() { [ -s "secrets/$1" ] || { cat > "secrets/$1" && chmod 444 "secrets/$1"; }; }
random | write ray_token
random | write postgres_password
echo "postgresql://mlflow:$(cat secrets/postgres_password)@postgres:5432/mlflow" | write mlflow_store
if [ ! -s secrets/s3_credentials ]; then
  key=$(random | cut -c1-20) secret=$(random)
  printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$key" "$secret" | write s3_credentials
  printf '{"identities": [{"name": "cleanplate", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": ["Admin"]}]}\n' \
    "$key" "$secret" | write s3_identities
fi
# Nobody may ask the endpoint until there is a key: cleanplate keys create NAME --file infra/keys/keys.json
mkdir -p keys && [ -s keys/keys.json ] || echo '{"version": 1, "keys": []}' > keys/keys.json
echo "infra/secrets/ holds $(ls secrets | wc -l) secrets; keep it out of git and images"

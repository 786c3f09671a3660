#!/bin/sh
# Makes the certificates that README.md lists, in the current folder. OpenSSL 3.
set -eu
cat > ca.cnf <<'CNF'
[ca]
default_ca = d
[d]
database = index
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = p
copy_extensions = copy
[p]
commonName = supplied
CNF
: > index
openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out ca.key
openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out receiver.key
openssl req -x509 -new -key ca.key -subj '/CN=Sluice test authority' -days 36500 -out ca.pem
signed() { # name, alternative name, first day, last day
    openssl req -new -key receiver.key -subj "/CN=$1" -addext "subjectAltName=$2" -out request.csr
    openssl ca -batch -notext -config ca.cnf -keyfile ca.key -cert ca.pem -in request.csr \
        -startdate "$3" -enddate "$4" -out "$1.pem"
}
signed good IP:127.0.0.1 20200101000000Z 21200101000000Z
signed other-host DNS:other.example 20200101000000Z 21200101000000Z
signed expired IP:127.0.0.1 20200101000000Z 20200102000000Z
openssl req -x509 -new -key receiver.key -subj '/CN=self-signed' -addext subjectAltName=IP:127.0.0.1 \
    -addext basicConstraints=critical,CA:FALSE -days 36500 -out self-signed.pem
rm -f ca.key ca.cnf index* request.csr [0-9A-F]*.pem

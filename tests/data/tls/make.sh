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
# What brokers show to receivers that ask for a certificate.
: > index
openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out clients-ca.key
openssl req -x509 -new -key clients-ca.key -subj '/CN=Sluice test authority of clients' -days 36500 -out clients-ca.pem
openssl ecparam -name prime256v1 -genkey -noout -out client-sec1.key
openssl pkcs8 -topk8 -nocrypt -in client-sec1.key -out client.key
openssl genrsa -traditional -out client-rsa-pkcs1.key 2048
openssl pkcs8 -topk8 -nocrypt -in client-rsa-pkcs1.key -out client-rsa.key
client() { # name, key, first day, last day
    openssl req -new -key "$2" -subj "/CN=$1" -addext extendedKeyUsage=clientAuth -out request.csr
    openssl ca -batch -notext -config ca.cnf -keyfile clients-ca.key -cert clients-ca.pem -in request.csr \
        -startdate "$3" -enddate "$4" -out "$1.pem"
}
client client client.key 20200101000000Z 21200101000000Z
client client-rsa client-rsa.key 20200101000000Z 21200101000000Z
client client-expired client.key 20200101000000Z 20200102000000Z
rm -f ca.key clients-ca.key ca.cnf index* request.csr [0-9A-F]*.pem

"""A client of Istio's certificate API that shares no code with ours: grpcio, and protobuf written by hand.

create_certificate.py ADDRESS ROOTS TOKEN CSR SECONDS: prints the certificate chain, roots last; or the status and what
is said of it, and ends with 3.
"""

import sys

import grpc


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def read_varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at


def texts(message):
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        assert tag == 0x0A, f"field {tag >> 3} of kind {tag & 7}"
        length, at = read_varint(message, at)
        yield message[at : at + length].decode()
        at += length


address, roots, token, csr, seconds = sys.argv[1:]
with open(roots, "rb") as file:
    credentials = grpc.ssl_channel_credentials(file.read())
with open(csr, "rb") as file:
    pem = file.read()
request = b"\x0a" + varint(len(pem)) + pem + b"\x18" + varint(int(seconds))
with grpc.secure_channel(address, credentials) as channel:
    create = channel.unary_unary("/istio.v1.auth.IstioCertificateService/CreateCertificate")
    try:
        answer = create(request, metadata=[("authorization", f"Bearer {token}")], timeout=20)
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}")
        sys.exit(3)
for text in texts(answer):
    print(text.strip())
    print("%%%")

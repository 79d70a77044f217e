"""A client of Istio's certificate API that shares no code with ours: grpcio, and protobuf written by hand.

create_certificate.py ADDRESS ROOTS TOKEN CSR SECONDS [newer]: prints the certificate chain, roots last; or the status and what
is said of it, and ends with 3. A newer client sends fields and metadata that no version knows yet.
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


address, roots, token, csr, seconds = sys.argv[1:6]
newer = sys.argv[6:] == ["newer"]
with open(roots, "rb") as file:
    credentials = grpc.ssl_channel_credentials(file.read())
with open(csr, "rb") as file:
    pem = file.read()
request = b"\x0a" + varint(len(pem)) + pem + b"\x18" + varint(int(seconds))
metadata = [("authorization", f"Bearer {token}")]
if newer:
    # A message, a number, the two kinds of fixed length, and a text; before and behind what is known.
    known, future = request, b"\xa2\x06\x02\x08\x01" + b"\xa8\x06\x07" + b"\xb1\x06" + bytes(8) + b"\xbd\x06" + bytes(4)
    request = future + known + b"\xc2\x06\x03new"
    metadata.append(("x-outrigger-future", "yes"))
with grpc.secure_channel(address, credentials) as channel:
    create = channel.unary_unary("/istio.v1.auth.IstioCertificateService/CreateCertificate")
    try:
        answer = create(request, metadata=metadata, timeout=20)
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}")
        sys.exit(3)
for text in texts(answer):
    print(text.strip())
    print("%%%")

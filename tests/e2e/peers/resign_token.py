"""Signs a service account's token anew, as the API server would. Arguments: KEY TOKEN SECONDS, from now to its end."""

import sys
import time

import jwt

key, token, seconds = sys.argv[1:]
claims = jwt.decode(token, options={"verify_signature": False})
claims["exp"] = int(time.time()) + int(seconds)
claims["iat"] = claims["nbf"] = claims["exp"] - 3600
header = {"kid": jwt.get_unverified_header(token)["kid"]}
with open(key) as file:
    print(jwt.encode(claims, file.read(), algorithm="ES256", headers=header))

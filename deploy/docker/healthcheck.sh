#!/usr/bin/env bash
# healthcheck PORT PATH: succeeds on a 200. In bash alone, as the images have no HTTP client.
exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$2" >&3
read -r -t 2 _ status _ <&3 && [[ $status == 200 ]]

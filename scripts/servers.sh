#!/usr/bin/env bash
# Checks that the servers are there which tests of discovery ask: a DNS server and etcd. They come
# from the distribution; HAVEN_DNSMASQ and HAVEN_ETCD name others.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A Debian user's PATH lacks the places of servers.
PATH=$PATH:/usr/sbin:/usr/bin
need "${HAVEN_DNSMASQ:-dnsmasq}" "on Debian and Ubuntu: sudo apt-get install dnsmasq-base" \
  "or set HAVEN_DNSMASQ to the program"
need "${HAVEN_ETCD:-etcd}" "on Debian and Ubuntu: sudo apt-get install etcd-server" \
  "or set HAVEN_ETCD to the program"

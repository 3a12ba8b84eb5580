#!/bin/sh
# The topology of a bridge and the users of the broker, each with no more than it needs. Where rabbitmqctl works:
#
#   PUBLISHER_PASSWORD=... BRIDGE_PASSWORD=... OPERATOR_PASSWORD=... sh deploy/rabbitmq/users.sh [VHOST]
#
# The vhost is push if none is named; it has to be there. This may be run again at any time. A user that is there keeps its
# password, unless its variable is set. Other names: PUBLISHER=, BRIDGE=, OPERATOR=. Another command: RABBITMQCTL=
#
#   publisher  publishes to the exchange push, and nothing else. With REPLIES=1 it may also have a queue of its own for
#              receipts (queue.declare with an empty name, exclusive).
#   bridge     `bridge serve` with BRIDGE_DECLARE=passive: takes what it has to take, and publishes receipts, outcomes,
#              dead letters, fallbacks, what users publish, and pushes of the ops port. It can't make, change or delete queues
#              of the topology.
#   operator   `bridge push`, `tail`, `why`, `replay`, `dead`, `audit`: looks at dead letters and outcomes, publishes again.
#
# Each service needs a publisher of its own if they are to be told apart: PUBLISHER=billing sh users.sh
set -eu

vhost=${1:-push}
rabbitmqctl=${RABBITMQCTL:-rabbitmqctl}
publisher=${PUBLISHER:-publisher}
bridge=${BRIDGE:-bridge}
operator=${OPERATOR:-operator}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# rabbitmqctl reads what the names of vhosts may not have.
case $vhost in *[\"\\\&\|]*) echo "users.sh: this vhost can't be used here: $vhost" >&2; exit 2 ;; esac

# Exchanges, queues and bindings; those that are there stay as they are.
# RabbitMQ 4 waits for ever for definitions that have no file (seen with 4.0.5), and 3 takes no pipe for a file.
case $($rabbitmqctl version) in 3.*) file= ;; *) file=/dev/stdin ;; esac
sed "s|@VHOST@|$vhost|" "$here/topology.json" | $rabbitmqctl --quiet import_definitions $file >/dev/null

there=$($rabbitmqctl --quiet list_users | cut -f 1)

# user NAME PASSWORD CONFIGURE WRITE READ
user() {
    if printf '%s\n' "$there" | grep -Fqx -- "$1"; then
        # The password goes by standard input: all users of the machine can see the arguments of a command. Without
        # --quiet, with which RabbitMQ 4 never reads it (seen with 4.0.5).
        [ -z "$2" ] || printf '%s\n' "$2" | $rabbitmqctl change_password "$1" >/dev/null
    elif [ -z "$2" ]; then
        echo "users.sh: $1 is not there yet, so it needs a password" >&2
        exit 2
    else
        printf '%s\n' "$2" | $rabbitmqctl add_user "$1" >/dev/null
    fi
    $rabbitmqctl --quiet set_permissions -p "$vhost" "$1" "$3" "$4" "$5"
    echo "$1: configure $3 write $4 read $5"
}

own='^$'
[ "${REPLIES:-}" != 1 ] || own='^amq\.gen'
user "$publisher" "${PUBLISHER_PASSWORD:-}" "$own" '^push$' "$own"
user "$bridge" "${BRIDGE_PASSWORD:-}" \
    '^(push\.(taker(\.[0-9]+)?$|node\.)|amq\.gen)' \
    '^(push|push\.(dead|fallback|inbound|outcomes|sessions)|amq\.default)$' \
    '^(push\.((requests|taker)(\.[0-9]+)?$|(fallen|control)$|node\.)|amq\.gen)'
user "$operator" "${OPERATOR_PASSWORD:-}" \
    '^amq\.gen' \
    '^(push$|amq\.gen)' \
    '^(push\.(dead|outcomes)$|amq\.gen)'

#!/bin/sh
# A conversation with sessiond by curl: create, append, page, title, end, resume, history.
#
#   examples/conversation.sh        # uses the service on http://127.0.0.1:3000, or on SESSIOND_URL
#
# Checks every response, and exits with 1 at the first unexpected one.
set -eu

base=${SESSIOND_URL:-http://127.0.0.1:3000}
business=B0100001
user=example-sh
cr=$(printf '\r')
nl='
'

fail() {
    echo "$method $path: $1" >&2
    echo "$response" >&2
    exit 1
}

# call STATUS METHOD PATH [BODY [HEADER]]: makes a call and requires this status. Sets `head` and `body`.
call() {
    method=$2 path=$3
    response=$(curl --silent --show-error --include --max-time 10 --request "$2" "$base$3" \
        --header 'Content-Type: application/json' --header "${5:-Accept: application/json}" ${4:+--data "$4"})
    # The head ends at the first empty line. A response without a body ends there as well.
    head=${response%%"$cr$nl$cr$nl"*}
    body=${response#*"$cr$nl$cr$nl"}
    status=${head#* }
    status=${status%%[ "$cr"]*}
    [ "$status" = "$1" ] || fail "$status instead of $1"
}

# contains TEXT: requires this text in the last body.
contains() {
    case $body in
        *"$1"*) ;;
        *) fail "no $1 in the body" ;;
    esac
}

# session_id: prints the sessionId of the last body.
session_id() {
    id=${body#*'"sessionId":"'}
    echo "${id%%'"'*}"
}

# create: a new session. An earlier run may have left one: `replace` ends it in the same step.
call 201 POST /api/sessions "{\"businessId\":\"$business\",\"userId\":\"$user\",\"ifActive\":\"replace\"}"
contains '"status":"active"'
contains '"version":1'
first=$(session_id)
echo "created $first"

# The next page load finds it: a user has at most one active session.
call 200 POST /api/sessions "{\"businessId\":\"$business\",\"userId\":\"$user\"}"
contains "\"sessionId\":\"$first\""
call 200 GET "/api/sessions/business/$business/user/$user/active"
contains "\"sessionId\":\"$first\""
echo "found it again"

# append: a messageId makes a retry safe; the second call stores nothing.
messages=/api/sessions/$first/messages
question='{"messageId":"m-1","role":"user","content":"When do you open?"}'
call 201 POST "$messages" "$question"
contains '"seq":1'
call 200 POST "$messages" "$question"
contains '"seq":1'
# Either all messages of an array are appended or none. Content is any JSON value except null.
call 201 POST "$messages" '[
    {"messageId":"m-2","role":"assistant","content":"At nine.","metadata":{"model":"example"}},
    {"messageId":"m-3","role":"user","content":{"text":"Thanks","stars":5}}
]'
contains '"seq":3'
echo "appended 3 messages"

# page: the newest two in ascending order, then the page of the Link header.
call 200 GET "$messages?limit=2"
contains '"messageId":"m-2"'
contains '"messageId":"m-3"'
case $head in
    *'>; rel="prev"'*) ;;
    *) fail 'no link to older messages' ;;
esac
older=${head#*[Ll]ink: <}
call 200 GET "${older%%>*}"
contains '"messageId":"m-1"'
echo "read them in two pages"

# title: If-Match rejects a change if the session has changed since it was read. Messages do not change the version.
call 200 PATCH "/api/sessions/$first" '{"title":"Opening hours","metadata":{"topic":"hours"}}' 'If-Match: "1"'
contains '"title":"Opening hours"'
contains '"version":2'
call 412 PATCH "/api/sessions/$first" '{"title":"Closing hours"}' 'If-Match: "1"'
contains '"code":"version_mismatch"'
echo "gave it a title"

# end: clients can read an ended session, but not append to it.
call 200 PATCH "/api/sessions/$first" '{"status":"ended"}'
contains '"endReason":"client"'
call 409 POST "$messages" '{"role":"user","content":"Hello?"}'
contains '"code":"session_not_active"'
echo "ended it"

# The user starts another conversation. With the key, a retry returns the same session instead of replacing it again.
another="{\"businessId\":\"$business\",\"userId\":\"$user\",\"ifActive\":\"replace\"}"
call 201 POST /api/sessions "$another" "Idempotency-Key: after-$first"
second=$(session_id)
call 200 POST /api/sessions "$another" "Idempotency-Key: after-$first"
contains "\"sessionId\":\"$second\""
echo "created $second"

# resume: the first session again, in place of the second.
call 409 PATCH "/api/sessions/$first" '{"status":"active"}'
contains '"code":"another_session_active"'
contains "\"activeSessionId\":\"$second\""
call 200 PATCH "/api/sessions/$first" '{"status":"active","ifActive":"replace"}'
contains '"status":"active"'
call 200 GET "/api/sessions/$second"
contains '"endReason":"replaced"'
echo "resumed $first"

# The heartbeat keeps it active while the user only reads.
call 200 PATCH "/api/sessions/$first" '{}'
contains '"status":"active"'

# history: every session of the user, with any status.
call 200 GET "/api/sessions/business/$business/user/$user/history?limit=2"
contains "\"sessionId\":\"$first\""
contains "\"sessionId\":\"$second\""
echo "found both in the history"

# Delete the sessions of this run.
call 204 DELETE "/api/sessions/$first"
call 204 DELETE "/api/sessions/$second"
call 404 GET "/api/sessions/$first"
contains '"code":"session_not_found"'
echo "deleted both"

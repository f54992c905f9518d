"""What a schema cannot say of a request, so that schemathesis takes a right refusal for a wrong one."""

import schemathesis
from schemathesis.openapi.checks import RejectedPositiveData


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Drops refusals of requests whose every part is well-formed, for one of two reasons."""
    if not isinstance(failure, RejectedPositiveData) or response.status_code != 400:
        return True
    problems = {(problem["field"], problem["message"]) for problem in response.json().get("errors", [])}
    allowed = {
        # Cursors are opaque: only a list's own are any.
        ("cursor", "must be one that a Link header of this list has given"),
        # Each is good alone.
        ("after", "must not be given together with before"),
    }
    return not problems or not problems <= allowed

"""The endpoints that Carillon's worker calls."""

from __future__ import annotations

from django.contrib.sessions.models import Session
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from examples.django_service.jobs import CLEAR_SESSIONS


@csrf_exempt  # type: ignore[untyped-decorator]  # Django ships no types
@require_POST  # type: ignore[untyped-decorator]
def clear_sessions(_request: HttpRequest) -> JsonResponse:
    """Deleting twice comes to the same, so a second attempt needs no care."""
    deleted, _ = Session.objects.filter(expire_date__lt=timezone.now()).delete()
    return JsonResponse({"metrics": {"deleted": deleted}})


urlpatterns = [path(CLEAR_SESSIONS.removeprefix("/"), clear_sessions)]

"""Registers the jobs when the apps are loaded."""

from __future__ import annotations

from carillon.integrations.django import start
from django.apps import AppConfig


class Service(AppConfig):  # type: ignore[misc]  # Django ships no types
    name = "examples.django_service"

    def ready(self) -> None:
        from examples.django_service.jobs import jobs

        start(jobs)

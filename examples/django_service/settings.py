"""As little as Django needs for sessions."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

DEBUG = True
SECRET_KEY = secrets.token_urlsafe(50)  # a real project keeps one
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
INSTALLED_APPS = ["django.contrib.sessions", "examples.django_service.apps.Service"]
MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware"]
ROOT_URLCONF = "examples.django_service.urls"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DJANGO_SERVICE_DB") or Path(tempfile.gettempdir()) / "django_service.sqlite3",
    }
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"carillon": {"handlers": ["console"], "level": "INFO"}},
}

"""Carillon in web frameworks: `integrations.starlette` (FastAPI too) and `integrations.django`."""

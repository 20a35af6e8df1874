"""A job API as teams write it with Django REST framework, served by gunicorn.

Its paths end in a slash, its ids are integers, and its users have tokens. It has no code for a cache. It prints its
port once it accepts connections, and counts the reads that it has answered.
"""

import ctypes
import signal
from collections import Counter

import django
from django.conf import settings
from gunicorn.app.base import BaseApplication

settings.configure(
    SECRET_KEY="only-for-tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "rest_framework",
        "rest_framework.authtoken",
    ],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework.authentication.TokenAuthentication"],
        "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    },
)
django.setup()

# Django's models and views can be imported only after setup().
from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection, models  # noqa: E402
from django.http import JsonResponse  # noqa: E402
from django.shortcuts import get_object_or_404  # noqa: E402
from django.urls import path  # noqa: E402
from rest_framework import generics, serializers  # noqa: E402
from rest_framework.authtoken.models import Token  # noqa: E402
from rest_framework.decorators import api_view  # noqa: E402
from rest_framework.exceptions import PermissionDenied  # noqa: E402
from rest_framework.response import Response  # noqa: E402

reads: Counter = Counter()


class Job(models.Model):
    status = models.CharField(max_length=20, default="running")
    note = models.CharField(max_length=80, default="", blank=True)
    # Empty: all users may read the job.
    owner = models.CharField(max_length=20, default="", blank=True)

    class Meta:
        app_label = "jobs"


class JobSerializer(serializers.ModelSerializer):
    class Meta:
        model = Job
        fields = ["id", "status", "note"]


class JobList(generics.ListCreateAPIView):
    queryset = Job.objects.order_by("id")
    serializer_class = JobSerializer


class JobDetail(generics.RetrieveUpdateDestroyAPIView):
    queryset = Job.objects.all()
    serializer_class = JobSerializer

    def get_object(self):
        job = super().get_object()
        if job.owner not in ("", self.request.user.username):
            raise PermissionDenied("not your job")
        return job

    def retrieve(self, request, *args, **kwargs):
        response = super().retrieve(request, *args, **kwargs)
        reads[f"{request.user.username} {kwargs['pk']}"] += 1
        return response


@api_view(["POST"])
def cancel(request, pk: int):
    job = get_object_or_404(Job, pk=pk)
    job.status = "cancelled"
    job.save()
    return Response(JobSerializer(job).data)


def counted(_request):
    return JsonResponse(reads)


urlpatterns = [
    path("jobs/", JobList.as_view()),
    path("jobs/<int:pk>/", JobDetail.as_view()),
    path("jobs/<int:pk>/cancel/", cancel),
    path("reads", counted),
]


def fill() -> None:
    call_command("migrate", run_syncdb=True, verbosity=0)
    with connection.schema_editor() as schema:
        schema.create_model(Job)
    for name in ("alice", "bob"):
        Token.objects.create(user=User.objects.create_user(name), key=f"token-of-{name}")
    Job.objects.create(pk=1, note="to warm up")
    for pk in (17, 18, 19):
        Job.objects.create(pk=pk)
    Job.objects.create(pk=20, owner="alice")


# Of prctl(2).
PR_SET_PDEATHSIG = 1


def end_with_parent(_arbiter, _worker) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def print_port(arbiter) -> None:
    print(arbiter.LISTENERS[0].sock.getsockname()[1], flush=True)


class Server(BaseApplication):
    """One worker, which has the database in its memory."""

    def load_config(self):
        self.cfg.set("bind", "127.0.0.1:0")
        self.cfg.set("workers", 1)
        self.cfg.set("when_ready", print_port)
        self.cfg.set("post_fork", end_with_parent)

    def load(self):
        fill()
        return get_wsgi_application()


if __name__ == "__main__":
    Server().run()

# The service in a container: the rooms app and model with their locked dependencies, nothing else.
#
#   docker build -t cat .
#   docker run -p 8000:8000 --read-only --cap-drop ALL --memory 256m cat

FROM python:3.13-slim AS build

# Without pip: what installs packages has no business where they run.
RUN python -m venv --without-pip /venv
COPY requirements/runtime.txt /tmp/
# Then leave out what serving never touches: test suites, C headers, static libraries, type stubs.
RUN pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary :all: --requirement /tmp/runtime.txt \
 && cd /venv/lib/python3*/site-packages \
 && find . -type d \( -name tests -o -name include -o -name f2py \) -prune -exec rm -r {} + \
 && find . -type f \( -name '*.pyi' -o -name '*.a' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd' \) -delete

COPY app /srv/app
COPY model /srv/model
# Compiled here: where the service runs, nothing can be written, and each start would compile anew.
RUN /venv/bin/python -m compileall -q /srv


FROM python:3.13-slim

ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CAT_BIND_HOST=0.0.0.0

COPY --from=build /venv /venv
COPY --from=build /srv /srv
WORKDIR /srv

LABEL org.opencontainers.image.title="Cat or not" \
    org.opencontainers.image.version="1.0.0" \
    org.opencontainers.image.licenses="MIT"

# A number, so that Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-m", "app.healthcheck"]
CMD ["python", "-m", "app"]

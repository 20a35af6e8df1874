# jobcache in a container.
#
#   docker build -t jobcache .
#
# The binary, the libraries it is linked with and the certificates of public authorities, 14 MB in all.
# There is no shell in it: what is to be looked at, `docker exec ... jobcache check` and the admin
# listener show. glibc rather than a static musl binary: musl's allocator has one lock for all threads,
# and glibc is what jobcache is developed and tested on.

FROM rust:1.95-slim-bookworm AS build
# blake3, ring and zstd are compiled by a C compiler in part, which the Rust image has for linking anyway.
WORKDIR /build

# The dependencies alone, in a layer that only a change of Cargo.toml or Cargo.lock invalidates.
# Benchmarks and tests declared there ([[bench]]) would need their sources: they are left out.
COPY Cargo.toml Cargo.lock ./
RUN sed -i '/^\[\[/,/^$/d' Cargo.toml \
    && mkdir src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked

# What `jobcache_build_info` says beside the version: `docker build --build-arg COMMIT="$(git rev-parse HEAD)" .`
ARG COMMIT=
COPY src src
# Cargo goes by modification times, and those of a checkout may be older than the layer above.
RUN touch src/main.rs src/lib.rs \
    && JOBCACHE_COMMIT="$COMMIT" cargo build --release --locked --bin jobcache

# What the final image holds. The libraries are those that the loader names, of Debian's libc6 and
# libgcc-s1, with their licences; nsswitch.conf makes it look into /etc/hosts and ask the DNS;
# upstreams with https:// are believed by ca-certificates.crt.
COPY LICENSE /image/usr/local/share/doc/jobcache/LICENSE
RUN install -D target/release/jobcache /image/usr/local/bin/jobcache \
    && for library in $(ldd target/release/jobcache | grep -o '/lib[^ ]*'); do \
        install -D "$library" "/image$library" || exit 1; \
    done \
    && for file in /etc/nsswitch.conf /etc/ssl/certs/ca-certificates.crt \
        /usr/share/doc/libc6/copyright /usr/share/doc/libgcc-s1/copyright; do \
        install -D -m 644 "$file" "/image$file" || exit 1; \
    done \
    && chroot /image /usr/local/bin/jobcache --version

FROM scratch
COPY --from=build /image /

# A number, so that Kubernetes' runAsNonRoot can tell that it is not root.
USER 65532:65532

# Clients come from outside of the container. The admin listener does not: it stays on the loopback
# address of the container, where only HEALTHCHECK reaches it. For the purge webhook, probes and
# metrics from outside set both
#   JOBCACHE_ADMIN=0.0.0.0:9090 and JOBCACHE_WEBHOOK_SECRET=<16 characters or more>
# Without the secret jobcache refuses to start: whoever reaches the address could purge.
ENV JOBCACHE_LISTEN=0.0.0.0:8080
EXPOSE 8080 9090

# Asks /livez at JOBCACHE_ADMIN: so set the address there and not by --admin.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["/usr/local/bin/jobcache", "healthcheck"]

# Takes flags and commands: `docker run jobcache check`. SIGTERM drains for up to 25 s: stop it with
# `docker stop --time 30`.
ENTRYPOINT ["/usr/local/bin/jobcache"]

# jobcache in a container.
#
#   docker build -t jobcache .
#
# Debian and glibc in both stages rather than a static musl binary on `scratch`: musl's allocator has
# one lock for all threads, and glibc is what jobcache is developed and tested on. No compiler, no
# package and no extra user is added to the final image.

FROM rust:1.95-slim-bookworm AS build
# blake3 compiles its assembly with a C compiler, which the Rust image has for linking anyway.
WORKDIR /build

# The dependencies alone, in a layer that only a change of Cargo.toml or Cargo.lock invalidates.
# Benchmarks and tests declared there ([[bench]]) would need their sources: they are left out.
COPY Cargo.toml Cargo.lock ./
RUN sed -i '/^\[\[/,/^$/d' Cargo.toml \
    && mkdir src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked

COPY src src
# Cargo goes by modification times, and those of a checkout may be older than the layer above.
RUN touch src/main.rs src/lib.rs && cargo build --release --locked --bin jobcache

FROM debian:bookworm-slim
COPY --from=build /build/target/release/jobcache /usr/local/bin/jobcache
COPY LICENSE /usr/local/share/doc/jobcache/LICENSE

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

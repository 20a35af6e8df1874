# jobcache in a container.
#
#   docker build -t jobcache .
#
# The image holds the binary, the libraries that it is linked with and the certificates of public
# authorities: 17 MB. It has no shell. Use `docker exec ... jobcache check` and the admin listener to look
# into it. It uses glibc instead of a static musl binary, because musl's allocator has one lock for all
# threads, and because jobcache is developed and tested with glibc.

FROM rust:1.95-slim-bookworm AS build
# Parts of blake3, ring and zstd need a C compiler. The Rust image has one, because it links with it.
WORKDIR /build

# Builds only the dependencies, in a layer that only a change of Cargo.toml or Cargo.lock invalidates.
# The [[bench]] sections are removed, because cargo would ask for their sources.
COPY Cargo.toml Cargo.lock ./
RUN sed -i '/^\[\[/,/^$/d' Cargo.toml \
    && mkdir src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked

# The label `commit` of `jobcache_build_info`: `docker build --build-arg COMMIT="$(git rev-parse HEAD)" .`
ARG COMMIT=
COPY src src
# Cargo compares modification times, and those of a checkout may be older than the layer above.
RUN touch src/main.rs src/lib.rs \
    && JOBCACHE_COMMIT="$COMMIT" cargo build --release --locked --bin jobcache

# Collects the files of the final image. The libraries are those that the loader lists, from Debian's
# libc6 and libgcc-s1, with their licences. THIRD-PARTY-NOTICES has the licences of the crates in the
# binary. With nsswitch.conf, names are looked up in /etc/hosts and by DNS. An https:// API is verified
# by ca-certificates.crt.
COPY LICENSE /image/usr/local/share/doc/jobcache/LICENSE
COPY config/notices.sh config/notices.sh
RUN sh config/notices.sh > /image/usr/local/share/doc/jobcache/THIRD-PARTY-NOTICES
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

# A number, so that runAsNonRoot of Kubernetes can check that it is not root.
USER 65532:65532

# Clients connect from outside the container. The admin listener stays on the loopback address of the
# container, where only HEALTHCHECK reaches it. For the purge webhook, probes and metrics from outside,
# set both
#   JOBCACHE_ADMIN=0.0.0.0:9090 and JOBCACHE_WEBHOOK_SECRET=<16 characters or more>
# Without the secret jobcache refuses to start, because anyone who reaches the address could purge.
ENV JOBCACHE_LISTEN=0.0.0.0:8080
EXPOSE 8080 9090

# Asks /livez at JOBCACHE_ADMIN, so set the address by that variable and not by --admin.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["/usr/local/bin/jobcache", "healthcheck"]

# Accepts flags and commands, such as `docker run jobcache check`. SIGTERM drains for up to 25 s, so stop
# it with `docker stop --time 30`.
ENTRYPOINT ["/usr/local/bin/jobcache"]

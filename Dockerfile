# syntax=docker/dockerfile:1
# kms-proxy on glibc and little else: PKCS#11 modules, which are loaded while it runs, need that. Nothing here names an
# architecture: `docker buildx build --platform linux/amd64,linux/arm64 .` makes both.
FROM rust:1.95-bookworm AS build
WORKDIR /build
# The wire format of etcd is compiled with this.
RUN cargo install --debug --locked --root target/tools protox@0.10.0 --features bin
# Symbols stay for backtraces, what a debugger needs does not.
ENV CARGO_PROFILE_RELEASE_STRIP=debuginfo
# Dependencies first, under an empty crate with the files that Cargo.toml names: this layer stays until one of these files changes.
COPY Cargo.toml Cargo.lock README.md ./
COPY .cargo .cargo
RUN for file in src/lib.rs $(sed -n 's/^path = "\(.*\)"/\1/p; /^\[\[bench\]\]/{n;s/name = "\(.*\)"/benches\/\1.rs/p}' Cargo.toml); do mkdir -p "$(dirname "$file")" && echo 'fn main() {}' > "$file"; done
RUN cargo build --release --locked --bin kms-proxy
COPY src src
# Older than the empty crate's, these files would count as built.
RUN find src -type f -exec touch {} + && cargo build --release --locked --bin kms-proxy
RUN install -D -m 0755 target/release/kms-proxy out/kms-proxy && mkdir -m 0700 out/data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /build/out/kms-proxy /usr/local/bin/kms-proxy
# A new volume that is mounted here gets this owner.
COPY --from=build --chown=65532:65532 /build/out/data /var/lib/kms-proxy
WORKDIR /var/lib/kms-proxy
VOLUME /var/lib/kms-proxy
# A number, so that Kubernetes sees that it is not root.
USER 65532:65532
# The service listens on loopback unless it is told otherwise: give it a configuration with server.listen. Health is
# asked for where KMS_PROXY_SERVER says, http://127.0.0.1:8080 by default.
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/local/bin/kms-proxy", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/kms-proxy"]
CMD ["serve"]

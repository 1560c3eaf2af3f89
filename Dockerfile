# Two ways to one image:
#
#   docker build -t sett .                                      compiles in a toolchain stage
#   make build && docker build -t sett --target prebuilt .      takes bin/sett, needs no other image
#
# `prebuilt` stands first because the classic builder builds every stage above the
# one that is asked for: so it never fetches a toolchain.

# The toolchain; any image with Go, a shell and CA certificates will do.
ARG GO_IMAGE=golang:1.26-bookworm

# An empty folder to copy: a scratch image has no mkdir, and a new volume takes
# the owner of the folder that it is mounted on.
FROM scratch AS empty
WORKDIR /empty

FROM scratch AS base
COPY --from=empty --chown=65532:65532 /empty /data
COPY --from=empty --chown=65532:65532 /empty /tmp
# The limit of the Go heap fits a container of 512 MiB: the storage engine keeps
# as much again outside of it.
ENV GOMEMLIMIT=200MiB \
    SETT_DATA_DIR=/data/sett \
    SETT_HTTP_ADDR=0.0.0.0:8080 \
    SETT_RAFT_ADDR=0.0.0.0:7000 \
    SETT_GOSSIP_ADDR=0.0.0.0:7946
USER 65532:65532
EXPOSE 8080 7000 7946 7946/udp
HEALTHCHECK --interval=2s --timeout=3s --start-period=20s --retries=3 CMD ["/sett", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/sett"]
CMD ["serve"]

FROM base AS prebuilt
# The classic builder comes through here on its way to the last stage too, where
# there need be no bin/sett: the pattern may match nothing.
COPY LICENSE bin/set[t] /
VOLUME /data

FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/sett ./cmd/sett

FROM base
COPY LICENSE /
COPY --from=build /out/sett /sett
VOLUME /data

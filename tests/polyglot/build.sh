#!/usr/bin/env bash
# Generates stubs for Go, TypeScript and Java from proto/ and builds the programs that the tests here run.
#
#   build.sh --stubs    only the stubs: go/gen, ts/gen, java/gen
#   build.sh            stubs, programs and grpcurl
#
# What has no toolchain is skipped, and says so. Versions are pinned here, in go/go.mod, ts/package-lock.json and
# java/pom.xml; what is loaded stays in the checkout's .cache/. This runs before pytest and not in it, because it
# needs what tests must not see: the machine's registries, proxies and certificates.
set -euo pipefail
cd "$(dirname "$0")/../.."

PROTOC_GEN_GO=v1.36.12
PROTOC_GEN_GO_GRPC=v1.6.2
GRPCURL=v1.9.4

here=tests/polyglot
cache=$PWD/.cache
notes=$here/build  # <language>.skipped says why
export GOMODCACHE=$cache/go/mod GOCACHE=$cache/go/build GOBIN=$cache/go/bin
export npm_config_cache=$cache/npm npm_config_update_notifier=false
export BUF_CACHE_DIR=$cache/buf

main() {
    local step=program language
    [ "${1:-}" != --stubs ] || step=stubs
    mkdir -p "$notes" "$cache"
    rm -f "$notes"/*.skipped
    for language in go ts java; do
        if "${language}_has_all" >"$notes/reason"; then
            echo "$language: building the $step"
            "${language}_stubs"
            [ "$step" = stubs ] || "${language}_program"
        else
            echo "$language: SKIPPED, $(cat "$notes/reason")"
            mv "$notes/reason" "$notes/$language.skipped"
        fi
    done
    rm -f "$notes/reason"
}

generate() {  # language [input]
    [ -n "${2:-}" ] || rm -rf "$here/$1/gen"
    .venv/bin/buf generate --template "$here/$1/buf.gen.yaml" "${@:2}"
}

# <language>_has_all fails when the toolchain lacks something, and prints what.

go_has_all() {
    command -v go >/dev/null || { echo "there is no go"; return 1; }
    GOFLAGS="$(go env GOFLAGS) -modcacherw"
    export GOFLAGS
    # Loads a newer Go where the machine allows it.
    (cd "$here/go" && go list -m) >/dev/null 2>&1 || { echo "$(go env GOVERSION) is too old for go.mod"; return 1; }
}

go_stubs() {
    go install "google.golang.org/protobuf/cmd/protoc-gen-go@$PROTOC_GEN_GO"
    go install "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$PROTOC_GEN_GO_GRPC"
    generate go
}

go_program() {
    rm -rf "$here/go/build" "$GOBIN/grpcurl"
    (cd "$here/go" && go vet . && go build -o build/karta-client .)
    go install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$GRPCURL"
}

ts_has_all() {
    command -v node >/dev/null && command -v npm >/dev/null || { echo "there is no node with npm"; return 1; }
    node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' || { echo "node $(node --version) is older than 20"; return 1; }
}

ts_stubs() {
    local modules=$here/ts/node_modules rpc=$here/build/googleapis/google/rpc details
    [ "$modules/.package-lock.json" -nt "$here/ts/package-lock.json" ] ||
        (cd "$here/ts" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    # ErrorInfo, which Go and Java have in libraries.
    details=$(.venv/bin/python -c 'import google.rpc.error_details_pb2 as module; print(module.__file__)')
    mkdir -p "$rpc"
    cp "${details%_pb2.py}.proto" "$rpc/"
    generate ts
    generate ts "${rpc%/google/rpc}"
}

ts_program() {
    rm -rf "$here/ts/dist"
    (cd "$here/ts" && node_modules/.bin/tsc)
}

java_has_all() {
    command -v javac >/dev/null && command -v mvn >/dev/null || { echo "there is no javac with mvn"; return 1; }
    javac --release 17 -version >/dev/null 2>&1 || { echo "$(javac -version 2>&1) is older than 17"; return 1; }
    java_platform >/dev/null || { echo "Maven Central has no protoc for $(uname -sm)"; return 1; }
}

java_stubs() {
    maven dependency:copy@generators "-Dplatform=$(java_platform)"
    chmod +x "$cache"/java/*.exe
    generate java
}

java_program() {
    rm -rf "$here/java/build"
    maven compile
}

java_platform() {
    case $(uname -sm) in
    "Linux x86_64") echo linux-x86_64 ;;
    "Linux aarch64") echo linux-aarch_64 ;;
    "Darwin x86_64") echo osx-x86_64 ;;
    "Darwin arm64") echo osx-aarch_64 ;;
    *) return 1 ;;
    esac
}

maven() {
    mvn --batch-mode --quiet --no-transfer-progress --file "$here/java/pom.xml" "-Dmaven.repo.local=$cache/maven" "$@"
}

main "$@"

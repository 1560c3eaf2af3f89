// Command etcd is what the comparison with etcd needs of it: `etcd node` is one
// member of a cluster with etcd's default settings, in a process of its own, and
// `etcd load` drives a cluster with closed-loop clients over gRPC and prints what it
// measured as JSON. `make bench-etcd` runs both; see ../main.go.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := fmt.Errorf("usage: etcd node|load [flags]")
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "node":
			err = runNode(ctx, os.Args[2:])
		case "load":
			err = runLoad(ctx, os.Args[2:])
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "etcd:", err)
		os.Exit(1)
	}
}

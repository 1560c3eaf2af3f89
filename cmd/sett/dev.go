package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func (a *app) devCommand() *cobra.Command {
	var o devOptions
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole cluster on this machine, to try things out",
		Long: `Run a whole cluster on this machine, to try things out: real server processes on
loopback, their HTTP ports one after the other. Ctrl-C stops all of it.

The data is in a temporary folder that is removed at the end. With --data-dir it
stays, and the same command brings the cluster back with it.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().IntVar(&o.nodes, "nodes", 3, "number of nodes")
	cmd.Flags().StringVar(&o.dir, "data-dir", "", "folder for data and logs, kept at exit (default a temporary one)")
	cmd.Flags().IntVar(&o.httpBase, "http-base", 8080, "HTTP port of the first node; 0 takes free ones")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if o.nodes < 1 || o.nodes > maxDevNodes {
			return usagef("bad value %d for --nodes: want 1 to %d", o.nodes, maxDevNodes)
		}
		if o.httpBase < 0 || o.httpBase+o.nodes > 1<<16 {
			return usagef("bad value %d for --http-base: want a port with room for %d nodes", o.httpBase, o.nodes)
		}
		o.nodesGiven = cmd.Flags().Changed("nodes")
		program, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		o.program, o.environ, o.out = program, a.environ, a.out
		signals := make(chan os.Signal, 2)
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		defer signal.Stop(signals)
		o.signals = signals
		return runDev(cmd.Context(), o)
	}
	return cmd
}

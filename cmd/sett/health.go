package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) healthCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Tell by the exit code whether the node at the first endpoint is ready: 0 yes, 1 no",
		Long: `Ask the node at the first endpoint whether it is ready (GET /readyz). The exit code
is 0 if it is and 1 if not, or if it does not answer; the reason is on standard
error. It is what the health check of the container image runs.`,
		Args: cobra.NoArgs,
	}
	conn := a.connectionFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			if err := cl.Ready(ctx); err != nil {
				// One code for all that is not ready: probes know 0 and 1 only.
				return fmt.Errorf("not ready: %s", errorLine(err))
			}
			_, err := fmt.Fprintln(a.out, "ready")
			return err
		})
	}
	return cmd
}

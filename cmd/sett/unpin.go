package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) unpinCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unpin ID",
		Short: "Let go of history that a pin holds; exit code 3 if there is no such pin",
		Args:  cobra.ExactArgs(1),
	}
	conn := a.connectionFlags(cmd)
	var o client.OnceOptions
	onceFlag(cmd, &o.IdempotencyKey)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			if err := cl.Unpin(ctx, args[0], o); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.out, "%s holds nothing any more\n", args[0])
			return err
		})
	}
	return cmd
}

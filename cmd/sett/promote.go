package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) promoteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "promote ID",
		Short: "Make a read replica a voter",
		Args:  cobra.ExactArgs(1),
	}
	conn := a.connectionFlags(cmd)
	var o client.OnceOptions
	onceFlag(cmd, &o.IdempotencyKey)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			m, err := cl.Promote(ctx, args[0], o)
			if err != nil {
				return err
			}
			return conn.printMember(m, "%s is a voter", args[0])
		})
	}
	return cmd
}

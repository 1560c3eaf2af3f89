package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) transferLeaderCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "transfer-leader [ID]",
		Short: "Hand leadership to a member, or to the one that is furthest",
		Args:  cobra.MaximumNArgs(1),
	}
	conn := a.connectionFlags(cmd)
	var o client.OnceOptions
	onceFlag(cmd, &o.IdempotencyKey)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		to := ""
		if len(args) > 0 {
			to = args[0]
		}
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			leader, err := cl.Transfer(ctx, to, o)
			if err != nil {
				return err
			}
			if conn.output == outputJSON {
				return printJSON(a.out, struct {
					Leader string `json:"leader"`
				}{leader})
			}
			_, err = fmt.Fprintf(a.out, "%s leads\n", leader)
			return err
		})
	}
	return cmd
}

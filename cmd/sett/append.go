package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) appendCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "append KEY [VALUE]",
		Short: "Add to the end of a value; a missing VALUE is read from standard input",
		Args:  cobra.RangeArgs(1, 2),
	}
	conn := a.connectionFlags(cmd)
	var key string
	onceFlag(cmd, &key)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		value, err := a.value(args)
		if err != nil {
			return err
		}
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			// Only the item before tells whether the key was made.
			o := client.WriteOptions{Previous: conn.output == outputJSON, IdempotencyKey: key}
			r, err := cl.Append(ctx, args[0], value, o)
			if err != nil {
				return err
			}
			return conn.printWrite("appended", r)
		})
	}
	return cmd
}

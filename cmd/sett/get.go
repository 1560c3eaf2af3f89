package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

func (a *app) getCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Write the value of a key to standard output, its bytes and nothing else",
		Args:  cobra.ExactArgs(1),
	}
	conn := a.connectionFlags(cmd)
	reading := readFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := reading.options()
		if err != nil {
			return err
		}
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			item, _, err := cl.Get(ctx, args[0], o)
			if err != nil {
				return err
			}
			return conn.printItem(item)
		})
	}
	return cmd
}

func (c *connection) printItem(item kv.Item) error {
	switch c.output {
	case outputJSON:
		return printForm(c.app.out, item)
	case outputTable:
		expires := "never"
		if !item.ExpiresAt.IsZero() {
			expires = item.ExpiresAt.Format(time.RFC3339Nano)
		}
		return printTable(c.app.out, c.output, [][]string{
			{"KEY", "BYTES", "REVISION", "CREATED AT", "VERSION", "CONTENT TYPE", "EXPIRES", "VALUE"},
			{
				fmt.Sprintf("%q", item.Key), strconv.Itoa(len(item.Value)), fmt.Sprint(item.ModRevision), fmt.Sprint(item.CreateRevision),
				fmt.Sprint(item.Version), item.ContentType, expires, fmt.Sprintf("%q", item.Value),
			},
		})
	}
	_, err := c.app.out.Write(item.Value)
	return err
}

package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// transfer does what encrypt and decrypt have in common. prepare returns what writes OUT: OUT is not touched before all keys are there, and is not
// there before all of it is.
func transfer(c *cli.Context, args []string, prepare func(c *cli.Context, in *input, name string) (func(*output) error, error)) error {
	if err := checkOutput(c, args[1]); err != nil {
		return err
	}
	in, err := openInput(c.Context, args[0])
	if err != nil {
		return err
	}
	defer in.Close()
	write, err := prepare(c, in, args[1])
	if err == nil {
		err = produce(c, in, args[1], write)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", c.Command.Name, in.name, hinted(err))
	}
	return nil
}

func produce(c *cli.Context, in *input, name string, write func(*output) error) error {
	out, err := createOutput(c, name)
	if err != nil {
		return err
	}
	defer out.discard()
	defer func() { in.bar.clear() }() // write makes it
	if err := write(out); err != nil {
		return err
	}
	return out.commit()
}

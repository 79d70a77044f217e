module outrigger/podapp

go 1.24

terraform {
  required_version = "~> 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }

  # Where the state lies is told by `terraform init -backend-config=backend.hcl`, which the bootstrap folder writes.
  backend "s3" {
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = merge({ project = "health-predict", name = var.name, managed_by = "terraform" }, var.tags)
  }
}
